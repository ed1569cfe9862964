"""Several reward models as one: their scores combined, and how far they disagree.

A policy that is trained against one reward model finds that model's mistakes. Models that were trained from other seeds
make other mistakes, so an answer on which they disagree is one that none of them should be believed about.
"""

from pathlib import Path

import torch
from torch import Tensor

from rlhf.errors import BadInput
from rlhf.reward_model import RewardModel
from rlhf.shapes import require_rank

COMBINATIONS = ("mean", "worst", "uncertainty")


def combine(scores: Tensor, how: str, *, coef: float) -> Tensor:
    """One score from the scores of the members.

        mean          1/M sum_m s_m
        worst         min_m s_m
        uncertainty   mean - coef * 1/M sum_m (s_m - mean)^2

    Source: Coste et al. 2023, section 3.2 (mean, worst-case and uncertainty-weighted optimisation),
    https://arxiv.org/abs/2310.02743

    Args:
        scores: normalised scores of the M members; gradient flows. [M, B]
        how: one of `COMBINATIONS`.
        coef: price of a unit of variance, at least 0; read by "uncertainty" only.

    Returns:
        Scores, same units. [B]

    Raises:
        ValueError: not two dimensions, no member, an unknown combination, or a negative price.
    """
    _require_members(scores)
    if how == "mean":
        return scores.mean(dim=0)
    if how == "worst":
        return scores.amin(dim=0)
    if how != "uncertainty":
        raise ValueError(f"combination is {how!r}, wanted one of {', '.join(COMBINATIONS)}")
    if not coef >= 0:
        raise ValueError(f"coef is {coef} but the price of disagreement must be at least 0")
    return scores.mean(dim=0) - coef * scores.var(dim=0, correction=0)


def disagreement(scores: Tensor) -> Tensor:
    """Standard deviation over the members: 0 where they agree, and everywhere for one member.

    Args:
        scores: normalised scores of the M members. [M, B]

    Returns:
        Spread in the units of the scores, without gradient. [B]

    Raises:
        ValueError: not two dimensions, or no member.
    """
    _require_members(scores)
    return scores.detach().std(dim=0, correction=0)


def member_folder(folder: Path, member: int) -> Path:
    """Where a member lies: the first is the folder itself, so whoever knows of one model only reads that one."""
    return folder / f"member-{member}" if member else folder


def load_members(folder: Path, *, device: torch.device | str, first: int = 0) -> list[RewardModel]:
    """The members of an ensemble from `first` on, frozen; one model where the folder holds no ensemble.

    Args:
        folder: what the reward recipe wrote.
        device: where the weights go.
        first: 1 to leave out the model of the folder itself, when it is loaded already.

    Raises:
        BadInput: a member cannot be loaded, or the numbers of the members have a gap.
    """
    count = 1 + len(list(folder.glob("member-*")))
    places = [member_folder(folder, member) for member in range(count)]
    for place in places[1:]:
        if not place.is_dir():
            raise BadInput(f"{place}: not there although {folder} has other members; run the reward stage again")
    return [RewardModel.load(place, device=device).requires_grad_(False) for place in places[first:]]


def load_ensemble(folder: Path, *, device: torch.device | str = "cpu") -> list[RewardModel]:
    """All members of an ensemble, frozen; see `load_members`."""
    return load_members(folder, device=device)


def _require_members(scores: Tensor) -> None:
    require_rank(2, scores=scores)
    if scores.shape[0] == 0:
        raise ValueError("scores has no rows; an ensemble needs at least one member")
