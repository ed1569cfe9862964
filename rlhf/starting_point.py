"""Where supervised fine-tuning starts: a fresh tokenizer and model, a local base model, or one from the hub."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.errors import BadInput
from rlhf.models import build_policy, fit_vocabulary, load_policy
from rlhf.tokenizer import load_tokenizer, train_tokenizer

MOVING = ("main", "master", "head", "latest", "")
"""Names of branches, which stand for other weights tomorrow."""


class Size(NamedTuple):
    """Shape of a model that is built from scratch; see `models.build_policy`."""

    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    context: int


def from_scratch(records: Sequence[dict[str, Any]], size: Size) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A tokenizer learnt from demonstrations, and a Llama-architecture model with random weights.

    Args:
        records: demonstrations; the text of prompts and responses is the corpus.
        size: shape of the model.
    """
    prompts = (message["content"] for record in records for message in record["prompt"])
    texts = chain(prompts, (record["response"] for record in records))
    tokenizer = train_tokenizer(texts, vocab_size=size.vocab_size)
    shape = size._asdict()
    del shape["vocab_size"]
    return tokenizer, build_policy(tokenizer, **shape)


def from_base(
    name: str, *, revision: str | None, base: Path, device: Any
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A pretrained model and its tokenizer, with a PAD that is not EOS and room for it in the embedding.

    Args:
        name: a folder in `base`, or a Hugging Face id.
        revision: commit or tag of a Hugging Face id; None means a local folder.
        base: folder of local base models.
        device: where the weights go.

    Raises:
        BadInput: no such folder, or it is not a model that can be loaded safely.
    """
    if revision is not None and revision.strip().lower() in MOVING:
        raise BadInput(f"{name}: sft.revision is {revision!r}, which moves; set it to a commit of this Hugging Face id")
    place: Path | str = name
    if revision is None:
        place = base / name.rpartition("/")[2]
        if not place.is_dir():
            raise BadInput(
                f"{place}: no such base model; add a folder with `ratchet ingest --model DIR --as {place.name}`, or "
                "set sft.revision to a commit or tag when base_model is a Hugging Face id"
            )
    tokenizer = load_tokenizer(place, revision=revision)
    policy = load_policy(place, device=device, revision=revision)
    fit_vocabulary(policy, tokenizer)
    return tokenizer, policy
