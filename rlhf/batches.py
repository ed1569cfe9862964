"""Token batches: right padding with masks, and seeded orders that keep padding small."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf import distributed

WINDOW = 16
"""Batches that are sorted by length together: more means less padding and a less random order."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts and responses laid end to end, padded on the right."""

    input_ids: Tensor
    """Token ids. [B, T] int64"""
    attention_mask: Tensor
    """True at real tokens, False at padding. [B, T] bool"""
    response_mask: Tensor
    """True at response tokens, the stop token included. [B, T] bool"""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.response_mask.to(device))

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows [start, stop) as a batch, cut to the longest of them."""
        mask = self.attention_mask[start:stop]
        width = int(mask.sum(dim=1).max())
        return Batch(self.input_ids[start:stop, :width], mask[:, :width], self.response_mask[start:stop, :width])


def collate(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], *, pad_id: int) -> Batch:
    """Pad prompt + response sequences on the right into one batch.

    Args:
        prompts: token ids of B prompts.
        responses: token ids of B responses, stop token included when there is one.
        pad_id: id written into the padding; it is masked everywhere.

    Raises:
        ValueError: no rows, different numbers of prompts and responses, or an empty prompt.
    """
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"collate: got {len(prompts)} prompts and {len(responses)} responses, wanted as many, not 0")
    if not all(prompts):
        raise ValueError("collate: a prompt has no tokens; a response needs at least one token before it")
    width = max(len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True))
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        input_ids[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response], dtype=torch.int64)
    place = torch.arange(width)
    starts = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(1)
    ends = starts + torch.tensor([len(response) for response in responses]).unsqueeze(1)
    attention_mask = place < ends
    return Batch(input_ids, attention_mask, attention_mask & (place >= starts))


def cut_response(prompt: Sequence[int], response: Sequence[int], *, max_tokens: int) -> list[int] | None:
    """The part of a response that fits behind its prompt; None when not even one token does.

    A response that was cut has lost its end token, so nothing learns to stop in the middle of a sentence.
    """
    room = max_tokens - len(prompt)
    return list(response[:room]) if room > 0 else None


def shuffled_batches(count: int, batch_size: int, *, generator: torch.Generator) -> list[list[int]]:
    """One epoch in a random order: every index once, in batches of `batch_size` (the last may be smaller)."""
    order = torch.randperm(count, generator=generator).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def length_buckets(
    lengths: Sequence[int], batch_size: int, *, generator: torch.Generator, window: int = WINDOW
) -> list[list[int]]:
    """One epoch in a random order whose batches hold sequences of like length.

    The permutation is cut into windows of `window` batches; each window is sorted by length and cut into batches, and
    all batches are shuffled again. Every index comes once; small windows stay close to a plain shuffle.

    Args:
        lengths: length of each sequence, in tokens.
        batch_size: rows in a batch; the last one may hold fewer.
        generator: source of the order.
        window: batches that are sorted together, at least 1.

    Returns:
        Lists of indices into `lengths`.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    span = batch_size * window
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        part = sorted(order[start : start + span], key=lambda index: lengths[index])
        batches.extend(part[at : at + batch_size] for at in range(0, len(part), batch_size))
    mixed = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[index] for index in mixed]


def plan_run(
    lengths: Sequence[int], batch_size: int, *, epochs: float, generator: torch.Generator
) -> tuple[list[list[int]], int]:
    """The batches of a whole training run, each epoch in a new order of `length_buckets`.

    Args:
        lengths: length of each sequence, in tokens.
        batch_size: rows of a global batch.
        epochs: passes over the data; may be a fraction.
        generator: source of the orders.

    Returns:
        The batches, and how many of them make one epoch.
    """
    rounds = [length_buckets(lengths, batch_size, generator=generator) for _ in range(math.ceil(epochs))]
    steps = max(1, round(epochs * len(rounds[0])))
    plan = [rows for batches in rounds for rows in batches][:steps]
    # A batch with fewer rows than ranks would leave a rank without work, and the others waiting for it.
    return [rows for rows in plan if len(rows) >= distributed.world_size()], len(rounds[0])


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every index once, by growing length: the cheapest order for scoring, where order does not matter."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
