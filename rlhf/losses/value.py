"""The value model's loss and how much of the returns it explains."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.losses.aggregation import token_mean
from rlhf.masking import masked_var, zero_outside
from rlhf.shapes import require_same_shape


class ValueLoss(NamedTuple):
    """Means over the response tokens (shares of them when `total_tokens` is given)."""

    loss: Tensor
    """What to minimise, squared reward units. scalar"""
    clip_fraction: Tensor
    """Share of tokens whose clipped error was the larger one and so was used; no gradient. scalar"""


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    *,
    clip_range: float | None,
    total_tokens: float | None = None,
) -> ValueLoss:
    """Squared error of the value model, pessimistic about steps away from the old values.

        L = mean of max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2) / 2

    The target is the return (advantage + old value), not the raw reward of the token.

    Source: Schulman et al. 2017, https://arxiv.org/abs/1707.06347, in the form of the authors' `baselines` code.

    Args:
        values: under the value model being updated, reward units; gradient flows. [B, T]
        old_values: when the batch was sampled; no gradient. [B, T]
        returns: advantages + old values, before whitening; no gradient. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        clip_range: eps, reward units, > 0; None for the plain squared error.
        total_tokens: response tokens of the whole batch, when this is one of its micro-batches.

    Returns:
        Loss and clip fraction.

    Raises:
        ValueError: shapes differ, clip_range is not positive, or there is no response token.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, response_mask=response_mask)
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"clip_range is {clip_range} but must be positive")
    # Cleaned before the arithmetic, or a NaN under the mask comes back through the gradient as 0 * NaN.
    values, old_values, returns = (
        zero_outside(tensor, response_mask) for tensor in (values, old_values.detach(), returns.detach())
    )
    error = (values - returns) ** 2
    if clip_range is None:
        clipped = error
    else:
        clipped = (old_values + (values - old_values).clamp(-clip_range, clip_range) - returns) ** 2
    loss = 0.5 * token_mean(torch.maximum(error, clipped), response_mask, total_tokens=total_tokens)
    # Within the range the two differ by rounding, which is not clipping.
    beyond = (values - old_values).abs() > (torch.inf if clip_range is None else clip_range)
    used = ((clipped > error) & beyond).to(loss.dtype)
    return ValueLoss(loss, token_mean(used, response_mask, total_tokens=total_tokens))


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, response_mask: Tensor) -> Tensor:
    """Share of the variance of the returns that the values account for.

        EV = 1 - var(returns - values) / var(returns)

    1 is perfect, 0 is no better than a constant, below 0 is worse than one.

    Args:
        values: predictions, reward units. [B, T]
        returns: targets, reward units. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool

    Returns:
        A scalar; 0 when the returns do not vary, since there is nothing to explain.

    Raises:
        ValueError: shapes differ, or there is no response token.
    """
    require_same_shape(values=values, returns=returns, response_mask=response_mask)
    spread = masked_var(returns, response_mask)
    unexplained = masked_var(returns - values, response_mask)
    return torch.where(spread > 0, 1 - unexplained / spread.clamp(min=torch.finfo(spread.dtype).tiny), 0.0)
