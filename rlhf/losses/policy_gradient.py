"""The policy-gradient family: one signature, five objectives.

Each takes the log-probabilities under the policy being updated and under the policy that sampled. The policy that
sampled is the one of the start of this update; it is not the frozen reference, which enters through the KL penalty.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.kl import LOG_RATIO_LIMIT
from rlhf.losses.aggregation import Aggregate, token_mean
from rlhf.masking import zero_outside
from rlhf.shapes import require_same_shape


class PolicyLoss(NamedTuple):
    """Loss and diagnostics.

    The diagnostics carry no gradient and are means over the response tokens, or this micro-batch's shares of those
    means when `total_tokens` is given (then they add up over micro-batches; `max_ratio_error` is a maximum always).
    """

    loss: Tensor
    """What to minimise, advantage units. scalar"""
    clip_fraction: Tensor
    """Share of tokens whose ratio a bound replaced, which stops their gradient. scalar"""
    approx_kl: Tensor
    """k3 estimate of KL(policy that sampled || policy), nats per token. scalar"""
    mean_ratio: Tensor
    """Mean of policy / policy that sampled; 1 in expectation. scalar"""
    max_ratio_error: Tensor
    """Largest |ratio - 1|; must be 0 up to rounding at the first minibatch after sampling. scalar"""


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_range_low: float,
    clip_range_high: float,
    dual_clip: float | None,
    total_tokens: float | None = None,
    aggregate: Aggregate | None = None,
) -> PolicyLoss:
    """Clipped surrogate policy loss of PPO.

        L = -E[min(r A, clip(r, 1 - low, 1 + high) A)],    r = exp(logprobs - old_logprobs)

    min takes the more pessimistic value on both sides: with A = 0.1, r = 0.7 and a range of 0.2 it is the unclipped
    0.07, not 0.08. With `dual_clip` c, a token with A < 0 costs at most c |A|, so that a ratio that ran away does not
    rule the batch.

    Source: Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347; unequal ranges ("clip-higher"): Yu et al.
    2025, eq. 8, https://arxiv.org/abs/2503.14476; dual clip: Ye et al. 2020, eq. 5, https://arxiv.org/abs/1912.09729

    Args:
        logprobs: log pi(token) under the policy being updated, nats; gradient flows. [B, T]
        old_logprobs: the same under the policy that sampled; no gradient. [B, T]
        advantages: already whitened over the whole batch; no gradient. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        clip_range_low: how far the ratio may fall below 1, in (0, 1].
        clip_range_high: how far the ratio may rise above 1, > 0.
        dual_clip: bound on the ratio where A < 0, above 1 + clip_range_high; None for none.
        total_tokens: response tokens of the whole batch, when this is one of its micro-batches.
        aggregate: from loss per token to a scalar; None for `token_mean` with `total_tokens`.

    Returns:
        Loss and diagnostics.

    Raises:
        ValueError: shapes differ, a range is out of bounds, or there is no response token.
    """
    if not (0 < clip_range_low <= 1 and clip_range_high > 0):
        raise ValueError(
            f"clip_range_low is {clip_range_low} and clip_range_high is {clip_range_high}, "
            "but the first must lie in (0, 1] and the second above 0"
        )
    if dual_clip is not None and not dual_clip > 1 + clip_range_high:
        raise ValueError(f"dual_clip is {dual_clip} but must be above 1 + clip_range_high = {1 + clip_range_high}")
    ratio, log_ratio, advantages = _ratios(logprobs, old_logprobs, advantages, response_mask)
    plain = ratio * advantages
    objective = torch.minimum(plain, ratio.clamp(1 - clip_range_low, 1 + clip_range_high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)
    # Not `objective != plain`: the two may differ in the last digit without the bound being active.
    outside = (ratio < 1 - clip_range_low) & (advantages < 0) | (ratio > 1 + clip_range_high) & (advantages > 0)
    if dual_clip is not None:
        outside = outside | (ratio > dual_clip) & (advantages < 0)
    return _policy_loss(-objective, outside, ratio, log_ratio, response_mask, total_tokens, aggregate)


def reinforce_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    total_tokens: float | None = None,
    aggregate: Aggregate | None = None,
) -> PolicyLoss:
    """Log-likelihood weighted by advantage: right only for samples of the very policy that is updated.

        L = -E[A log pi(token)]

    Source: Williams 1992, https://doi.org/10.1007/BF00992696

    Args:
        logprobs: under the policy being updated, nats; gradient flows. [B, T]
        old_logprobs: under the policy that sampled; read for the diagnostics only. [B, T]
        advantages: no gradient. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        total_tokens: response tokens of the whole batch, when this is one of its micro-batches.
        aggregate: from loss per token to a scalar; None for `token_mean` with `total_tokens`.

    Returns:
        Loss and diagnostics; nothing is ever clipped.

    Raises:
        ValueError: shapes differ, or there is no response token.
    """
    ratio, log_ratio, advantages = _ratios(logprobs, old_logprobs, advantages, response_mask)
    loss = -advantages * zero_outside(logprobs, response_mask)
    return _policy_loss(loss, torch.zeros_like(response_mask), ratio, log_ratio, response_mask, total_tokens, aggregate)


def importance_sampled_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    total_tokens: float | None = None,
    aggregate: Aggregate | None = None,
) -> PolicyLoss:
    """Advantage weighted by the probability ratio: samples can be used again, but nothing bounds the step.

        L = -E[r A],    r = exp(logprobs - old_logprobs)

    Source: Schulman et al. 2017, eq. 6, https://arxiv.org/abs/1707.06347

    Args:
        logprobs: under the policy being updated, nats; gradient flows. [B, T]
        old_logprobs: under the policy that sampled; no gradient. [B, T]
        advantages: no gradient. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        total_tokens: response tokens of the whole batch, when this is one of its micro-batches.
        aggregate: from loss per token to a scalar; None for `token_mean` with `total_tokens`.

    Returns:
        Loss and diagnostics; nothing is ever clipped.

    Raises:
        ValueError: shapes differ, or there is no response token.
    """
    ratio, log_ratio, advantages = _ratios(logprobs, old_logprobs, advantages, response_mask)
    nowhere = torch.zeros_like(response_mask)
    return _policy_loss(-ratio * advantages, nowhere, ratio, log_ratio, response_mask, total_tokens, aggregate)


def penalised_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    step_kl_coef: float,
    total_tokens: float | None = None,
    aggregate: Aggregate | None = None,
) -> PolicyLoss:
    """Importance-sampled loss with a price on leaving the policy that sampled (PPO with a penalty, "PPO1").

        L = -E[r A] + coef E[(r - 1) - log r],    r = exp(logprobs - old_logprobs)

    The second mean estimates KL(policy that sampled || policy). Here k3 also has the right gradient, because the
    tokens come from the first argument of that KL, which does not move.

    Source: Schulman et al. 2017, eq. 8, https://arxiv.org/abs/1707.06347

    Args:
        logprobs: under the policy being updated, nats; gradient flows. [B, T]
        old_logprobs: under the policy that sampled; no gradient. [B, T]
        advantages: no gradient. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        step_kl_coef: coef, advantage units per nat, at least 0. Not the coefficient of the KL to the reference.
        total_tokens: response tokens of the whole batch, when this is one of its micro-batches.
        aggregate: from loss per token to a scalar; None for `token_mean` with `total_tokens`.

    Returns:
        Loss and diagnostics; nothing is ever clipped.

    Raises:
        ValueError: shapes differ, step_kl_coef is negative, or there is no response token.
    """
    if not step_kl_coef >= 0:
        raise ValueError(f"step_kl_coef is {step_kl_coef} but must be at least 0")
    ratio, log_ratio, advantages = _ratios(logprobs, old_logprobs, advantages, response_mask)
    loss = step_kl_coef * (torch.expm1(log_ratio) - log_ratio) - ratio * advantages
    nowhere = torch.zeros_like(response_mask)
    return _policy_loss(loss, nowhere, ratio, log_ratio, response_mask, total_tokens, aggregate)


def clipped_penalised_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_range_low: float,
    clip_range_high: float,
    dual_clip: float | None,
    step_kl_coef: float,
    total_tokens: float | None = None,
    aggregate: Aggregate | None = None,
) -> PolicyLoss:
    """Clip and penalty together: what the clip lets go free still has its price.

        L = clipped loss + coef E[(r - 1) - log r]

    A clipped token's gradient is zero and not pulled back; the penalty pulls it back.

    Args:
        logprobs: under the policy being updated, nats; gradient flows. [B, T]
        old_logprobs: under the policy that sampled; no gradient. [B, T]
        advantages: no gradient. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        clip_range_low: as in `clipped_policy_loss`.
        clip_range_high: as in `clipped_policy_loss`.
        dual_clip: as in `clipped_policy_loss`.
        step_kl_coef: as in `penalised_loss`.
        total_tokens: response tokens of the whole batch, when this is one of its micro-batches.
        aggregate: from loss per token to a scalar; None for `token_mean` with `total_tokens`.

    Returns:
        Loss and diagnostics, the latter those of `clipped_policy_loss`.

    Raises:
        ValueError: as in both.
    """
    bounded = clipped_policy_loss(
        logprobs, old_logprobs, advantages, response_mask, clip_range_low=clip_range_low,
        clip_range_high=clip_range_high, dual_clip=dual_clip, total_tokens=total_tokens, aggregate=aggregate,
    )  # fmt: skip
    price = penalised_loss(
        logprobs, old_logprobs, torch.zeros_like(advantages), response_mask, step_kl_coef=step_kl_coef,
        total_tokens=total_tokens, aggregate=aggregate,
    )  # fmt: skip
    return bounded._replace(loss=bounded.loss + price.loss)


def _ratios(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, response_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Ratio, its logarithm and the advantages, all cleaned of what lies under the mask."""
    require_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, response_mask=response_mask)
    # Cleaned before exp: a NaN under the mask would come back through the gradient as 0 * NaN.
    log_ratio = zero_outside(logprobs, response_mask) - zero_outside(old_logprobs.detach(), response_mask)
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.exp(), log_ratio, zero_outside(advantages.detach(), response_mask)


def _policy_loss(
    loss: Tensor,
    clipped: Tensor,
    ratio: Tensor,
    log_ratio: Tensor,
    response_mask: Tensor,
    total_tokens: float | None,
    aggregate: Aggregate | None,
) -> PolicyLoss:
    def mean(x: Tensor) -> Tensor:
        return token_mean(x.detach(), response_mask, total_tokens=total_tokens)

    return PolicyLoss(
        loss=token_mean(loss, response_mask, total_tokens=total_tokens)
        if aggregate is None
        else aggregate(loss, response_mask),
        clip_fraction=mean(clipped.to(loss.dtype)),
        approx_kl=mean(torch.expm1(log_ratio) - log_ratio),
        mean_ratio=mean(ratio),
        max_ratio_error=zero_outside((ratio.detach() - 1).abs(), response_mask).max(),
    )
