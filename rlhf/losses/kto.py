"""Kahneman-Tversky optimisation: learning from single answers that somebody found good or bad.

The reward that a policy implies is log pi - log pi_ref, as in DPO. What a person gains or loses by an answer is felt
against a reference point: z0, how far the policy has drifted in general. No second answer to the prompt is needed.

All log-probabilities are sums over a response's tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.losses.aggregation import pair_mean
from rlhf.losses.bradley_terry import at_least_float32
from rlhf.shapes import require_rank, require_same_shape


class KtoLoss(NamedTuple):
    """Loss and diagnostics."""

    loss: Tensor
    """What to minimise, between 0 and the larger weight (a share of it when `total_judgements` is given). scalar"""
    rewards: Tensor
    """Implicit rewards, beta (log pi - log pi_ref); no gradient. [B]"""


def kto_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    desirable: Tensor,
    *,
    reference_point: Tensor,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
    total_judgements: float | None = None,
) -> KtoLoss:
    """One minus the felt value of each answer, weighted by its class.

        r = log pi - log ref
        L = E[w (1 - sigma(beta (r - z0)))]    w = desirable_weight,   desirable answers
        L = E[w (1 - sigma(beta (z0 - r)))]    w = undesirable_weight, undesirable answers

    The gradient vanishes for answers far on either side of z0: what is already learnt, and what is likely a wrong
    judgement, is let go.

    Source: Ethayarajh et al. 2024, eq. 8, https://arxiv.org/abs/2402.01306

    Args:
        logprobs: log pi of the judged response, nats; gradient flows. [B]
        ref_logprobs: log-probability under the reference; no gradient. [B]
        desirable: True for good answers. [B] bool
        reference_point: z0 of the whole batch, nats, at least 0, see `reference_point`; no gradient. scalar
        beta: reward units per nat, > 0; larger saturates sooner.
        desirable_weight: of good answers, > 0.
        undesirable_weight: of bad answers, > 0.
        total_judgements: judgements of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss and implicit rewards.

    Raises:
        ValueError: shapes differ, `desirable` is not boolean, or a number is out of its range.
    """
    require_rank(1, logprobs=logprobs)
    require_rank(0, reference_point=reference_point)
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, desirable=desirable)
    if desirable.dtype != torch.bool:
        raise ValueError(f"desirable has type {desirable.dtype} but must be bool")
    if not (beta > 0 and desirable_weight > 0 and undesirable_weight > 0):
        raise ValueError(
            f"beta is {beta}, desirable_weight {desirable_weight}, undesirable_weight {undesirable_weight} "
            "but all must be positive"
        )
    # Asked with "not", so that NaN is refused too.
    if not bool(reference_point >= 0):
        raise ValueError(f"reference_point is {float(reference_point)} but must be at least 0")
    ratio = at_least_float32(logprobs) - at_least_float32(ref_logprobs.detach())
    gain = beta * (ratio - reference_point.detach())
    # 1 - sigma(x) = sigma(-x), without the cancellation.
    loss = torch.where(
        desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    )  # fmt: skip
    return KtoLoss(pair_mean(loss, total_pairs=total_judgements), (beta * ratio).detach())


@torch.no_grad()
def reference_point(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """How far the policy has drifted from its reference, by the log-ratios of answers to other prompts.

        z0 = max(0, mean(log pi(y' | x) - log ref(y' | x)))

    An estimate of KL(pi || ref) that is biased but free of sampling; the answers y' come from the same batch, each
    under a prompt x that it was not given to. A KL is not negative, so the estimate is not either.

    Source: Ethayarajh et al. 2024, section 4.2, https://arxiv.org/abs/2402.01306

    Args:
        logprobs: log pi of the mismatched answers of the whole batch, nats. [M]
        ref_logprobs: the same under the reference. [M]

    Returns:
        z0, nats; 0 when there is no mismatched answer. scalar

    Raises:
        ValueError: shapes differ.
    """
    require_rank(1, logprobs=logprobs)
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    ratio = at_least_float32(logprobs) - at_least_float32(ref_logprobs)
    return (ratio.sum() / max(1, ratio.shape[0])).clamp(min=0)
