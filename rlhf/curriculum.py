"""Order of prompts by difficulty: easy ones first, at random inside bands of like difficulty.

A prompt is as hard as the answers to it are bad: difficulty is minus the mean reward of k answers that the starting
policy gave. The spread of those rewards says how much there is to learn from comparing answers to it; where it is 0,
a group method has no gradient.

Source: Bengio et al. 2009, "Curriculum learning", https://doi.org/10.1145/1553374.1553380 (easy first helps); Xu et al.
2020, "Curriculum Learning for Natural Language Understanding", https://aclanthology.org/2020.acl-main.542 (scores of
models as the measure of difficulty, stages with shuffling inside each); Kimi Team 2025, https://arxiv.org/abs/2501.12599
(answers of the SFT model as the measure, and curriculum sampling of prompts in reinforcement learning).
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.streams import random_source

BANDS = 4
"""Bands of a run, unless asked otherwise: few, so that every update still mixes many prompts."""


class Difficulty(NamedTuple):
    """How hard each prompt is for the policy whose answers were scored."""

    hardness: Tensor
    """Minus the mean score, so that larger is harder, in the units of the scores. [N] float64"""
    spread: Tensor
    """Standard deviation of a prompt's scores over its answers (divided by k, not k - 1). [N] float64"""


def difficulty(scores: Tensor) -> Difficulty:
    """Difficulty of N prompts from the scores of k answers to each.

        hardness_i = -(1/k) sum_j score_ij,    spread_i = sqrt((1/k) sum_j (score_ij + hardness_i)^2)

    Args:
        scores: rewards of the answers; higher is better. [N, k]

    Returns:
        Hardness and spread of each prompt.

    Raises:
        ValueError: not a matrix of at least one answer a prompt, or a score is not finite.
    """
    if scores.dim() != 2 or scores.shape[1] < 1:
        raise ValueError(f"difficulty: scores have shape {tuple(scores.shape)}, wanted [prompts, answers]")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("difficulty: a score is not finite, wanted the reward of every answer")
    exact = scores.detach().double().cpu()
    return Difficulty(hardness=-exact.mean(dim=1), spread=exact.std(dim=1, correction=0))


def curriculum_order(hardness: Tensor, *, length: int, seed: int, bands: int = BANDS) -> list[int]:
    """Prompts of a whole run, easy first.

    Prompts, sorted by hardness, and the places of the run are both cut into `bands` parts of equal size (to within
    one); part b of the run draws from part b of the prompts, every prompt of it once in a random order, then once more
    in another order, and so on. A run of as many places as prompts asks each prompt exactly once, and a run of any
    length goes from the easiest band to the hardest.

    Args:
        hardness: how hard each prompt is; larger is harder, equal ones keep their order. [N]
        length: places in the run: updates x prompts per update.
        seed: of the order inside the bands; the result depends on nothing else.
        bands: parts, at least 1 and at most N; 1 is a plain seeded shuffle.

    Returns:
        Index of the prompt at each place. `length` numbers in [0, N).

    Raises:
        ValueError: hardness is not a row of finite numbers, or length or bands are out of range.
    """
    count = len(hardness) if hardness.dim() == 1 else 0
    if not count or not bool(torch.isfinite(hardness).all()):
        raise ValueError(f"curriculum_order: hardness has shape {tuple(hardness.shape)}, wanted [N] finite numbers")
    if length < 0 or not 1 <= bands <= count:
        raise ValueError(f"curriculum_order: length {length}, bands {bands}; wanted 0 or more, and 1 to {count} bands")
    ranked = hardness.detach().cpu().argsort(stable=True).tolist()
    places, prompts = _cuts(length, bands), _cuts(count, bands)
    order: list[int] = []
    for band, ((start, end), (first, last)) in enumerate(zip(pairwise(places), pairwise(prompts), strict=True)):
        members, lap = ranked[first:last], 0
        while start < end:
            drawn = torch.randperm(len(members), generator=random_source(seed, band, lap)).tolist()[: end - start]
            order += [members[index] for index in drawn]
            start, lap = start + len(drawn), lap + 1
    return order


def _cuts(size: int, parts: int) -> list[int]:
    """Where to cut `size` things into parts of equal size; the same rounding for prompts and for places."""
    return [size * part // parts for part in range(parts + 1)]
