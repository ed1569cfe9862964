"""The reward model's loss on pairs of answers."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.losses.aggregation import pair_mean
from rlhf.shapes import require_rank, require_same_shape


class RewardLoss(NamedTuple):
    """Loss and diagnostics; the latter carry no gradient."""

    loss: Tensor
    """What to minimise: nats per pair, plus the centring term. scalar"""
    accuracy: Tensor
    """Share of decided pairs (label not 0.5) of this micro-batch whose order is right; an equal pair of scores counts
    half, and 0.5 stands for a micro-batch of ties only. scalar"""
    margin: Tensor
    """Mean of chosen minus rejected score, reward units (a share of it when `total_pairs` is given). scalar"""


def bradley_terry_loss(
    chosen_scores: Tensor,
    rejected_scores: Tensor,
    label: Tensor,
    *,
    margin: Tensor | None,
    centering: float,
    total_pairs: float | None = None,
) -> RewardLoss:
    """Negative log-likelihood of the labels under the Bradley-Terry model.

        L = -E[p log sigma(a - b - m) + (1 - p) log sigma(b - a - m)] + centering E[(a + b)^2]

    a and b are the scores, p the label, m the margin. The model sees differences only, so a constant could be added to
    every score; the centring term (0.01 is usual) takes that freedom away.

    Source: Ouyang et al. 2022, eq. 1, https://arxiv.org/abs/2203.02155; margin: Touvron et al. 2023, eq. 2,
    https://arxiv.org/abs/2307.09288; centring: Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244

    Args:
        chosen_scores: a, reward units; gradient flows. [B]
        rejected_scores: b, reward units; gradient flows. [B]
        label: p = P(chosen is better), in [0, 1]; 0.5 is a tie. [B]
        margin: m, reward units, at least 0, how clear the preference is; None for 0. [B]
        centering: weight of the squared sum, at least 0.
        total_pairs: pairs of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss and diagnostics.

    Raises:
        ValueError: shapes differ, a label lies outside [0, 1], centering is negative, or there is no pair.
    """
    label = check_pairs(label, chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    if not centering >= 0:
        raise ValueError(f"centering is {centering} but must be at least 0")
    # Half precision knows about three digits: close pairs would tie and their gradient would vanish.
    chosen, rejected = at_least_float32(chosen_scores), at_least_float32(rejected_scores)
    difference = chosen - rejected
    loss = pair_negative_log_likelihood(chosen, rejected, label, margin=margin, centering=centering)
    return RewardLoss(
        loss=pair_mean(loss, total_pairs=total_pairs),
        accuracy=decided_accuracy(difference, label),
        margin=pair_mean(difference.detach(), total_pairs=total_pairs),
    )


def pair_negative_log_likelihood(
    first: Tensor, second: Tensor, label: Tensor, *, margin: Tensor | None, centering: float
) -> Tensor:
    """The terms of `bradley_terry_loss` before their mean; no check but that of shapes.

    Args:
        first: a, reward units; gradient flows. [...]
        second: b, reward units; gradient flows. [...]
        label: P(the first is better), in [0, 1]. [...]
        margin: m, reward units, at least 0; None for 0. [...]
        centering: weight of the squared sum.

    Returns:
        Nats, and the centring term. [...]

    Raises:
        ValueError: shapes differ.
    """
    difference = first - second
    required = torch.zeros_like(difference) if margin is None else margin.to(difference.dtype)
    require_same_shape(difference=difference, margin=required, label=label)
    loss = -(label * logsigmoid(difference - required) + (1 - label) * logsigmoid(-difference - required))
    if centering > 0:
        loss = loss + centering * (first + second) ** 2
    return loss


def check_pairs(label: Tensor, **tensors: Tensor) -> Tensor:
    """Refuse tensors that are not one number for each pair, and labels that are no probabilities.

    Args:
        label: P(chosen is better). [B]
        **tensors: the others, by name. [B] each

    Returns:
        The label in at least float32, without gradient. [B]

    Raises:
        ValueError: shapes differ, or a label lies outside [0, 1] or is NaN.
    """
    require_rank(1, **tensors)
    require_same_shape(**tensors, label=label)
    if not bool(((label >= 0) & (label <= 1)).all()):
        raise ValueError("a label lies outside [0, 1]; it is the probability that the chosen answer is better")
    return at_least_float32(label.detach())


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or in float64 when it is that already.

    Args:
        x: any tensor. [...]

    Returns:
        The same values. [...]
    """
    return x if x.dtype == torch.float64 else x.float()


@torch.no_grad()
def decided_accuracy(difference: Tensor, label: Tensor) -> Tensor:
    """Share of the pairs with a preference whose difference has the preferred sign.

    Args:
        difference: of scores or of implicit rewards, chosen minus rejected. [B]
        label: P(chosen is better). [B]

    Returns:
        A scalar; a difference of exactly 0 counts half, and 0.5 stands for a batch of ties only.
    """
    decided = label != 0.5
    # sign(...) is 1 for right, -1 for wrong, 0 for no opinion.
    right = 0.5 + 0.5 * torch.sign(difference) * torch.sign(label - 0.5)
    return torch.where(decided.any(), (right * decided).sum() / decided.sum().clamp(min=1), 0.5)
