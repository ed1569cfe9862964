"""A model's forward passes in sampling: the prompts once, then a token at a time.

Equal prompts are computed once, and what the cache holds of them is copied. Two kinds of cache: tables for fp32 on a
CPU (`rlhf.decode_attention`), where prompts are taken in blocks of like length, so that there is little padding and
what a block computes stays in the processor's cache; and for all else one block of left-padded rows in the cache of
`rlhf.kv_cache`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from rlhf import decode_attention
from rlhf.decode_attention import Slots, TableLayer
from rlhf.kv_cache import attends_fully, make_cache

BLOCK_TOKENS = 512
"""Tokens of prompts, padding included, in one forward pass on a CPU: their activations stay in its cache."""


class Decoder(Protocol):
    """Logits of rows that grow by a token at a time."""

    drop_below: float
    """Rows that are done are worth dropping when at most this share of the rows goes on."""

    def prefill(self) -> Tensor:
        """Logits after each prompt. [B, V]."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row. [B] to [B, V]."""

    def keep(self, indices: Tensor) -> None:
        """Drop every row that is not named."""


def make_decoder(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, pad_id: int
) -> Decoder:
    """The fastest decoder that the model and the device allow.

    Args:
        model: causal language model in eval mode.
        prompts: token ids of B prompts, none empty; by length, so that there is little padding.
        max_new_tokens: longest response, tokens.
        pad_id: id written into the padding.
    """
    kind = TableDecoder if attends_fully(model) and decode_attention.suits(model) else PaddedDecoder
    return kind(model, prompts, max_new_tokens, pad_id)


class PaddedDecoder:
    """Left-padded rows, for any model and device."""

    drop_below = 0.9  # each drop copies the cache

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, pad_id: int
    ) -> None:
        """Lay out the prompts; see `make_decoder`."""
        self.model = model
        prompts, self.source = distinct(prompts, model.device)
        self.input_ids, mask = left_padded(prompts, pad_id, model.device)
        self.width = mask.shape[1]
        self.mask = torch.nn.functional.pad(mask, (0, max_new_tokens), value=True)
        self.position = mask.sum(dim=1)
        self.cache = make_cache(model, self.width + max_new_tokens)
        # A ready four-dimensional mask is used as it is, which saves building one in each step; a model with several
        # kinds of attention needs several masks, so it builds its own from the two-dimensional one.
        self.ready_mask = attends_fully(model) and model.config._attn_implementation == "sdpa"

    def prefill(self) -> Tensor:
        """Logits after each prompt. [B, V]."""
        logits = forward(self.model, self.cache, self.input_ids, self.mask[:, : self.width])
        if self.source is None:
            return logits
        self.keep(self.source)
        return logits[self.source]

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row. [B] to [B, V]."""
        self.width += 1
        mask = self.mask[:, : self.width]
        positions = self.position.unsqueeze(1)
        self.position = self.position + 1
        mask = mask[:, None, None, :] if self.ready_mask else mask
        return forward(self.model, self.cache, tokens.unsqueeze(1), mask, positions)

    def keep(self, indices: Tensor) -> None:
        """Drop every row that is not named."""
        self.mask, self.position = self.mask[indices], self.position[indices]
        cache: Any = self.cache
        cache.batch_select_indices(indices)


class TableDecoder:
    """Prompts in blocks of like length, then attention over tables."""

    drop_below = 0.97

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, pad_id: int
    ) -> None:
        """Lay out the tables; see `make_decoder`."""
        decode_attention.install()
        self.model, self.prompts, self.pad_id = model, prompts, pad_id
        self.position = torch.tensor([len(prompt) for prompt in prompts])
        width = int(self.position.max())
        padding = width - int(self.position.min())
        self.slots = Slots(len(prompts), width=width, padding=padding, capacity=width + max_new_tokens)
        layers = model.config.get_text_config().num_hidden_layers
        self.cache = Cache(layers=[TableLayer(self.slots) for _ in range(layers)])
        unread = torch.arange(width + max_new_tokens) < (width - self.position).unsqueeze(1)
        self.mask = torch.zeros(unread.shape).masked_fill_(unread, -torch.inf)

    def prefill(self) -> Tensor:
        """Logits after each prompt. [B, V]."""
        found = []
        for start, stop in blocks_of_like_length(self.prompts):
            prompts, source = distinct(self.prompts[start:stop], self.model.device)
            self.slots.prompts(slice(start, stop), source)
            logits = forward(self.model, self.cache, *left_padded(prompts, self.pad_id, self.model.device))
            found.append(logits if source is None else logits[source])
        self.slots.end_prompts()
        return found[0] if len(found) == 1 else torch.cat(found)

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits after one more token in each row. [B] to [B, V]."""
        self.slots.advance()
        positions = self.position.unsqueeze(1)
        self.position = self.position + 1
        mask = self.mask[:, None, None, : self.slots.stop]
        return forward(self.model, self.cache, tokens.unsqueeze(1), mask, positions)

    def keep(self, indices: Tensor) -> None:
        """Drop every row that is not named."""
        self.mask, self.position = self.mask[indices], self.position[indices]
        self.slots.keep(indices)


def distinct(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[list[Sequence[int]], Tensor | None]:
    """Prompts without repetition, and for each the number of its like among them; None when no two are equal. [B]."""
    numbers: dict[tuple[int, ...], int] = {}
    of_row = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt in prompts]
    if len(numbers) == len(prompts):
        return list(prompts), None
    return list(numbers), torch.tensor(of_row, device=device)


def blocks_of_like_length(prompts: Sequence[Sequence[int]], tokens: int = BLOCK_TOKENS) -> Iterator[tuple[int, int]]:
    """Blocks of neighbouring prompts with at most so many tokens, padding included and repetition not: start and stop.

    Args:
        prompts: the shortest first, equal ones together.
        tokens: a longer prompt is a block of its own.
    """
    start, rows = 0, 0
    for number, prompt in enumerate(prompts):
        new = number == start or prompt != prompts[number - 1]
        if start < number and new and (rows + 1) * len(prompt) > tokens:
            yield start, number
            start, rows = number, 0
        rows += new
    yield start, len(prompts)


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids with padding before the shorter prompts, and True at real tokens. [B, T] int64, [B, T] bool."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    sizes = torch.tensor([len(prompt) for prompt in prompts], device=device)
    return ids, torch.arange(width, device=device) >= (width - sizes).unsqueeze(1)


def forward(
    model: PreTrainedModel, cache: Cache, input_ids: Tensor, mask: Tensor, positions: Tensor | None = None
) -> Tensor:
    """Logits after the last token of each row.

    Args:
        model: causal language model.
        cache: what it has computed before; what it computes now is added.
        input_ids: [B, T] int64
        mask: as the model understands it, two-dimensional where `positions` is None.
        positions: of the tokens; None: real tokens are counted, since padding must not shift learned positions. [B, T]

    Returns:
        [B, V]
    """
    if positions is None:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    result = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
        logits_to_keep=1,
    )  # fmt: skip
    logits: Tensor = result.logits[:, -1]
    return logits
