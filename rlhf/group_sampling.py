"""Answers in groups of one prompt, and new prompts in place of groups that teach nothing (dynamic sampling).

Where all answers to a prompt score the same, their advantages within the group are 0: the group costs time and shrinks
the batch. Such groups are replaced by answers to other prompts for a bounded number of rounds.

Source: Yu et al. 2025 (DAPO), section 3.2, https://arxiv.org/abs/2503.14476 (there without a bound).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.advantages import all_equal
from rlhf.batches import Batch, collate
from rlhf.logprobs import scatter_response
from rlhf.rollout import Sampled


class Answers(NamedTuple):
    """Sampled responses and what the reward signals say about them."""

    sampled: Sampled
    asked: list[int]
    """Index of the prompt at each place; those of one group follow each other. B numbers"""
    signals: dict[str, Tensor]
    """By name, in the order of the rows. [B] each"""
    scores: Tensor
    """What the policy is to raise, in the order of the rows. [B]"""


class Unscored(NamedTuple):
    """Sampled responses whose text signals are being computed."""

    sampled: Sampled
    score: Callable[[], Answers]
    """Waits for the signals; call it once."""


class Mixed(NamedTuple):
    """Answers after replacement."""

    answers: Answers
    replaced: int
    """Groups that were asked anew, on this rank."""


def equal_groups(scores: Tensor, place: Tensor, size: int) -> Tensor:
    """Groups whose scores are all equal.

    Args:
        scores: in the order of the rows. [B]
        place: of each row in the order of asking. [B]
        size: answers to a prompt.

    Returns:
        In the order of asking. [B / size] bool
    """
    asked = torch.empty_like(scores)
    asked[place] = scores
    return all_equal(asked.view(-1, size))


def until_groups_differ(
    answers: Answers,
    ask: Callable[[Sequence[int], int], Unscored],
    spare: Callable[[int, int], Sequence[int]],
    *,
    size: int,
    rounds: int,
    pad_id: int,
) -> Mixed:
    """For some rounds, put answers to other prompts in place of groups whose answers all score the same.

    Args:
        answers: to this rank's prompts, `size` to each.
        ask: from indices of prompts and the number of the round, from 1, to answers.
        spare: from the number of a round and a count to indices of other prompts.
        size: answers to a prompt.
        rounds: how often at most, at least 0.
        pad_id: id written into the padding.

    Returns:
        As many answers as before; some groups may still be equal.
    """
    replaced = 0
    for attempt in range(1, rounds + 1):
        equal = equal_groups(answers.scores, answers.sampled.place, size)
        count = int(equal.sum())
        if not distributed.any_rank(count > 0):
            break
        # All ranks ask, since gathering the weights is a collective; one that needs nothing drops what it gets.
        prompts = [prompt for prompt in spare(attempt, max(count, 1)) for _ in range(size)]
        fresh = ask(prompts, attempt).score()
        if count:
            answers, replaced = replace_groups(answers, fresh, equal, size=size, pad_id=pad_id), replaced + count
    return Mixed(answers, replaced)


def replace_groups(old: Answers, fresh: Answers, equal: Tensor, *, size: int, pad_id: int) -> Answers:
    """Put the groups of some answers into the places of other groups.

    Args:
        old: all groups.
        fresh: as many groups as are to be replaced.
        equal: True at groups of `old` to replace. [G] bool
        size: answers to a prompt.
        pad_id: id written into the padding.

    Returns:
        Rows by length again, every place once.

    Raises:
        ValueError: the number of fresh groups is not that of the groups to replace.
    """
    targets = equal.nonzero().squeeze(1)
    if len(targets) * size != len(fresh.asked):
        raise ValueError(f"replace_groups: got {len(fresh.asked)} fresh answers for {len(targets)} groups of {size}")
    kept = ~equal[old.sampled.place // size]
    moved = targets[fresh.sampled.place // size] * size + fresh.sampled.place % size
    place = torch.cat((old.sampled.place[kept], moved))
    rows = [row for row, keep in zip(_rows(old.sampled), kept.tolist(), strict=True) if keep] + _rows(fresh.sampled)
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row][0]) + len(rows[row][1]), int(place[row])))
    batch = collate([rows[row][0] for row in order], [rows[row][1] for row in order], pad_id=pad_id)
    index = torch.tensor(order, device=place.device)
    captured = torch.tensor([value for row in order for value in rows[row][2]], dtype=torch.float32)

    def merge(mine: Tensor, theirs: Tensor) -> Tensor:
        return torch.cat((mine[kept], theirs))[index]

    asked = list(old.asked)
    for row, at in enumerate(moved.tolist()):
        asked[at] = fresh.asked[int(fresh.sampled.place[row])]
    return Answers(
        sampled=Sampled(
            batch.to(place.device), scatter_response(captured, batch.response_mask).to(place.device),
            merge(old.sampled.ended, fresh.sampled.ended), place[index],
        ),
        asked=asked,
        signals={name: merge(signal, fresh.signals[name]) for name, signal in old.signals.items()},
        scores=merge(old.scores, fresh.scores),
    )  # fmt: skip


def describe_groups(answers: Answers, replaced: int, *, size: int) -> dict[str, float]:
    """What is recorded of the groups of answers to one prompt.

    Args:
        answers: this rank's.
        replaced: groups that were asked anew, on this rank.
        size: answers to a prompt.

    Returns:
        `equal_groups`, the share of groups that are left with equal scores, and `replaced_groups`, their number
        before; over all ranks. Nothing for groups of one.
    """
    if size == 1:
        return {}
    equal = equal_groups(answers.scores, answers.sampled.place, size)
    counts = {"equal": float(equal.sum()), "all": float(len(equal)), "replaced": float(replaced)}
    sums = distributed.reduce_sum(counts)
    return {"equal_groups": sums["equal"] / sums["all"], "replaced_groups": sums["replaced"]}


def _rows(sampled: Sampled) -> list[tuple[list[int], list[int], list[float]]]:
    """Prompt ids, response ids and captured log-probabilities of each row."""
    batch: Batch = sampled.batch
    prompt_mask = batch.attention_mask & ~batch.response_mask
    return [
        (
            batch.input_ids[row][prompt_mask[row]].tolist(),
            batch.input_ids[row][batch.response_mask[row]].tolist(),
            sampled.captured[row][batch.response_mask[row]].tolist(),
        )
        for row in range(len(batch.input_ids))
    ]
