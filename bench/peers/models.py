"""Models and token sequences that both sides get: random weights and random tokens of ragged lengths.

Numbers of tokens and shapes decide the time of a step, not what the tokens say. A policy that is to be sampled from
has two things set by hand: PAD is never likely, and the end of a response has the chance per token that is asked for.
Column 0 of its embedding, which is the head too, is the same for all other tokens and passes through all layers, so
that it moves all logits alike and those two by as much as is wanted.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf.models import build_policy

PAD, EOS = 0, 1
FIRST_WORD = 2
COLUMN = 0.2
"""Of the embedding's column 0: ten times the spread of the other weights."""
END_CHANCE = 1 / 30
"""Chance of the end token at each place of a sampled response: 48 places hold 24 tokens then, on average."""
UNLIKELY = -12.0
"""Logit, against the mean, of a token that shall not be sampled."""


class Size(NamedTuple):
    """Shape of a Llama with tied embeddings."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    prompt: tuple[int, int]
    """Shortest and longest prompt, tokens."""
    response: tuple[int, int]
    """Shortest and longest response, tokens, the end token included."""


SIZES = {
    "M": Size(288, 6, 6, 768, 8192, (16, 80), (16, 96)),
    "S": Size(128, 4, 4, 320, 1024, (16, 80), (16, 96)),
    "T": Size(32, 2, 2, 48, 128, (4, 12), (4, 12)),
}
"""M has 8.3M parameters, S 0.9M; T is for tests of the bench itself."""


class Sequence(NamedTuple):
    """A prompt and one answer to it, or two."""

    prompt: list[int]
    response: list[int]
    other: list[int]
    """The rejected answer of a pair; empty for a demonstration."""


def make_tokenizer(size: Size) -> PreTrainedTokenizerFast:
    """One word per token; trainers want one, although all data here are token ids."""
    words = {"[PAD]": PAD, "[EOS]": EOS} | {f"w{index}": index for index in range(FIRST_WORD, size.vocabulary)}
    inner = Tokenizer(WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", eos_token="[EOS]")


def write_policy(size: Size, folder: Path, *, seed: int = 1, end_chance: float | None = None) -> Path:
    """Write a random policy with its tokenizer.

    Args:
        size: its shape.
        folder: to write to.
        seed: of the weights.
        end_chance: chance of the end token at each place of a sampled response, about; 0 for never; None where nothing
            is sampled.

    Returns:
        The folder.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(size)
    shape: dict[str, Any] = {"hidden": size.hidden, "layers": size.layers, "heads": size.heads}
    model: LlamaForCausalLM = build_policy(tokenizer, **shape, intermediate=size.intermediate, context=512)
    if end_chance is not None:
        _set_chances(model, size, end_chance)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _set_chances(model: LlamaForCausalLM, size: Size, end_chance: float) -> None:
    weight = model.get_input_embeddings().weight
    weight[:, 0] = COLUMN
    for layer in model.base_model.layers:
        # Nothing else writes there, or its sign would change from token to token.
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    ids = torch.randint(FIRST_WORD, size.vocabulary, (4, 64))
    strength = float(model.base_model(input_ids=ids).last_hidden_state[..., 0].mean())
    odds = end_chance * size.vocabulary / (1 - end_chance)
    weight[PAD, 0] = COLUMN + UNLIKELY / strength
    weight[EOS, 0] = COLUMN + (math.log(odds) if odds > 0 else UNLIKELY) / strength


def make_sequences(size: Size, count: int, *, pairs: bool, seed: int = 1) -> list[Sequence]:
    """Sequences of uniformly random lengths; frequent tokens are much more frequent than rare ones, as in text.

    Args:
        size: vocabulary and ranges of lengths.
        count: how many.
        pairs: whether each has a second answer.
        seed: of lengths and tokens.
    """
    source = torch.Generator().manual_seed(seed)
    words = size.vocabulary - FIRST_WORD
    chances = 1.0 / (torch.arange(words, dtype=torch.float64) + 2.7)

    def length(bounds: tuple[int, int]) -> int:
        return int(torch.randint(bounds[0], bounds[1] + 1, (), generator=source))

    def tokens(number: int) -> list[int]:
        drawn = torch.multinomial(chances, number, replacement=True, generator=source)
        return (drawn + FIRST_WORD).tolist()

    def answer() -> list[int]:
        return [*tokens(length(size.response) - 1), EOS]

    return [Sequence(tokens(length(size.prompt)), answer(), answer() if pairs else []) for _ in range(count)]
