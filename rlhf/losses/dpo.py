"""Direct preference objectives: the policy is its own reward model.

The reward that a policy implies is beta (log pi - log pi_ref) + beta log Z(x). The last term depends on the prompt
alone, and is the same for both answers: it cancels in their difference, which is why no Z(x) appears below.

All log-probabilities are sums over a response's tokens; `length_normalised` before the call gives the variant in which
they are means, and zeros for the reference give the variant without one. Both together are SimPO without its margin.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.losses.aggregation import pair_mean
from rlhf.losses.bradley_terry import at_least_float32, check_pairs, decided_accuracy
from rlhf.shapes import require_rank, require_same_shape


class DpoLoss(NamedTuple):
    """Loss and diagnostics; the latter carry no gradient, and are shares of means when `total_pairs` is given."""

    loss: Tensor
    """What to minimise. scalar"""
    chosen_reward: Tensor
    """Mean implicit reward of the chosen answers, beta (log pi - log pi_ref), up to beta log Z(x). scalar"""
    rejected_reward: Tensor
    """The same of the rejected answers. scalar"""
    accuracy: Tensor
    """Share of decided pairs (label not 0.5) of this micro-batch whose rewards are in the right order. scalar"""
    margin: Tensor
    """Mean of chosen minus rejected reward. scalar"""


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    label: Tensor,
    *,
    beta: float,
    label_smoothing: float,
    total_pairs: float | None = None,
) -> DpoLoss:
    """Direct preference optimisation, with soft labels and label smoothing.

        h = beta ((log pi_c - log ref_c) - (log pi_r - log ref_r))
        L = -E[p log sigma(h) + (1 - p) log sigma(-h)],    p = (1 - eps) label + eps (1 - label)

    Source: Rafailov et al. 2023, eq. 7, https://arxiv.org/abs/2305.18290; smoothing (cDPO): Mitchell 2023,
    https://ericmitchell.ai/cdpo.pdf

    Args:
        chosen_logprobs: log pi of the chosen response, nats; gradient flows. [B]
        rejected_logprobs: log pi of the rejected response, nats; gradient flows. [B]
        ref_chosen: log-probability of the chosen response under the reference; no gradient. [B]
        ref_rejected: the same of the rejected response; no gradient. [B]
        label: P(chosen is better), in [0, 1]; 0.5 is a tie. [B]
        beta: reward units per nat, > 0; larger stays closer to the reference.
        label_smoothing: eps, the share of labels thought wrong, in [0, 0.5).
        total_pairs: pairs of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss (nats per pair) and diagnostics.

    Raises:
        ValueError: shapes differ, or a number is out of its range.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is {label_smoothing} but must lie in [0, 0.5)")
    label, chosen, rejected = _implicit_rewards(
        chosen_logprobs, rejected_logprobs, ref_chosen, ref_rejected, label, beta=beta
    )
    probability = (1 - label_smoothing) * label + label_smoothing * (1 - label)
    logit = chosen - rejected
    loss = -(probability * logsigmoid(logit) + (1 - probability) * logsigmoid(-logit))
    return _dpo_loss(loss, chosen, rejected, label, total_pairs)


def ipo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    label: Tensor,
    *,
    beta: float,
    total_pairs: float | None = None,
) -> DpoLoss:
    """Identity preference optimisation: pull the log-ratio gap to a finite target instead of to infinity.

        g = (log pi_c - log ref_c) - (log pi_r - log ref_r)
        L = E[(g - (2 label - 1) / (2 beta))^2]

    Source: Azar et al. 2023, eq. 17, https://arxiv.org/abs/2310.12036 (there beta is tau, and labels are 1)

    Args:
        chosen_logprobs: log pi of the chosen response, nats; gradient flows. [B]
        rejected_logprobs: log pi of the rejected response, nats; gradient flows. [B]
        ref_chosen: log-probability of the chosen response under the reference; no gradient. [B]
        ref_rejected: the same of the rejected response; no gradient. [B]
        label: P(chosen is better), in [0, 1]; 0.5 is a tie, whose target is 0. [B]
        beta: reward units per nat, > 0; larger stays closer to the reference.
        total_pairs: pairs of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss (squared nats) and diagnostics.

    Raises:
        ValueError: shapes differ, or a number is out of its range.
    """
    label, chosen, rejected = _implicit_rewards(
        chosen_logprobs, rejected_logprobs, ref_chosen, ref_rejected, label, beta=beta
    )
    gap = (chosen - rejected) / beta
    loss = (gap - (2 * label - 1) / (2 * beta)) ** 2
    return _dpo_loss(loss, chosen, rejected, label, total_pairs)


def length_normalised(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Log-probability per token, so that a long answer is not preferred or refused for its length.

    Source: Meng et al. 2024 (SimPO), eq. 3, https://arxiv.org/abs/2405.14734

    Args:
        logprobs: of whole responses, nats; gradient flows. [B]
        lengths: response tokens, the end token included; 0 counts as 1, since an empty sum is 0 anyway. [B]

    Returns:
        Nats per token. [B]

    Raises:
        ValueError: shapes differ, or a length is negative.
    """
    require_rank(1, logprobs=logprobs)
    require_same_shape(logprobs=logprobs, lengths=lengths)
    if not bool((lengths >= 0).all()):
        raise ValueError("a length is negative; lengths count tokens")
    return logprobs / lengths.clamp(min=1)


def preferred_nll(
    chosen_per_token: Tensor, rejected_per_token: Tensor, label: Tensor, *, total_pairs: float | None = None
) -> Tensor:
    """Negative log-likelihood per token of the answer that the label prefers, against its becoming less likely.

        L = -E[log pi(preferred) / |preferred|]

    DPO only asks for a distance between the answers, and is content when both fall.

    Source: Pang et al. 2024, eq. 1 (weight 1 there), https://arxiv.org/abs/2404.19733

    Args:
        chosen_per_token: log pi of the chosen response by its length, nats; gradient flows. [B]
        rejected_per_token: the same of the rejected response, which is learnt where the label is below 0.5. [B]
        label: P(chosen is better), in [0, 1]; at 0.5 the chosen one is learnt. [B]
        total_pairs: pairs of the whole batch, when this is one of its micro-batches.

    Returns:
        A scalar, nats per token.

    Raises:
        ValueError: shapes differ, or a label lies outside [0, 1].
    """
    label = check_pairs(label, chosen_per_token=chosen_per_token, rejected_per_token=rejected_per_token)
    preferred = torch.where(label < 0.5, rejected_per_token, chosen_per_token)
    return -pair_mean(at_least_float32(preferred), total_pairs=total_pairs)


def _implicit_rewards(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    label: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    label = check_pairs(
        label,
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        ref_chosen=ref_chosen,
        ref_rejected=ref_rejected,
    )
    if not beta > 0:
        raise ValueError(f"beta is {beta} but must be positive")
    chosen = beta * (at_least_float32(chosen_logprobs) - at_least_float32(ref_chosen.detach()))
    rejected = beta * (at_least_float32(rejected_logprobs) - at_least_float32(ref_rejected.detach()))
    return label, chosen, rejected


def _dpo_loss(loss: Tensor, chosen: Tensor, rejected: Tensor, label: Tensor, total_pairs: float | None) -> DpoLoss:
    difference = (chosen - rejected).detach()
    return DpoLoss(
        loss=pair_mean(loss, total_pairs=total_pairs),
        chosen_reward=pair_mean(chosen.detach(), total_pairs=total_pairs),
        rejected_reward=pair_mean(rejected.detach(), total_pairs=total_pairs),
        accuracy=decided_accuracy(difference, label),
        margin=pair_mean(difference, total_pairs=total_pairs),
    )
