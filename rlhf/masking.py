"""Sums, means and whitening over the True positions of a mask.

What lies under False is never read: it may be NaN or infinite without any effect on values or gradients.
"""

import torch
from torch import Tensor

from rlhf.shapes import require_rank, require_same_shape

VARIANCE_FLOOR = 1e-8


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """Copy of `x` with zeros where the mask is False, cutting those positions off the gradient.

    Multiplying by the mask is not the same: 0 * NaN is NaN, in the value and in the gradient.

    Args:
        x: any tensor. [...]
        mask: True where x counts. [...] bool

    Returns:
        x where True, else 0. [...]

    Raises:
        ValueError: shapes differ.
    """
    require_same_shape(x=x, mask=mask)
    return torch.where(mask, x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor, *, dim: int | None = None) -> Tensor:
    """Sum over the True positions.

    Args:
        x: any tensor. [...]
        mask: True where x counts. [...] bool
        dim: sum along this dimension only; None for all.

    Returns:
        A scalar, or x's shape without `dim`. An empty sum is 0.

    Raises:
        ValueError: shapes differ.
    """
    kept = zero_outside(x, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, *, dim: int | None = None) -> Tensor:
    """Mean over the True positions.

    Args:
        x: any tensor. [...]
        mask: True where x counts. [...] bool
        dim: mean along this dimension only; None for all.

    Returns:
        A scalar, or x's shape without `dim`.

    Raises:
        ValueError: shapes differ, or a mean would be over no position.
    """
    total = masked_sum(x, mask, dim=dim)
    count = mask.sum() if dim is None else mask.sum(dim)
    if not bool((count > 0).all()):
        raise ValueError(f"no position is True in a mask of shape {tuple(mask.shape)}; a mean needs at least one")
    return total / count


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Variance over the True positions, dividing by their number (not by one less).

    The two conventions differ visibly in small batches; this one gives whitened values a variance of exactly 1.

    Args:
        x: any tensor. [...]
        mask: True where x counts. [...] bool

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or no position is True.
    """
    return masked_mean((zero_outside(x, mask) - masked_mean(x, mask)) ** 2, mask)


def masked_whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Shift to mean 0 and scale to variance 1 over the True positions.

    For advantages, over the whole batch. Not for rewards: their sign is the message (`masked_scale`).

    Args:
        x: any tensor. [...]
        mask: True where x counts. [...] bool

    Returns:
        The whitened values, 0 where the mask is False. All are 0 when x is constant. [...]

    Raises:
        ValueError: shapes differ, or no position is True.
    """
    centred = zero_outside(x, mask) - masked_mean(x, mask)
    return zero_outside(centred * torch.rsqrt(masked_var(x, mask) + VARIANCE_FLOOR), mask)


def masked_scale(x: Tensor, mask: Tensor) -> Tensor:
    """Scale to variance 1 over the True positions and leave the zero point where it is.

    For rewards: moving their mean would erase the sign of the KL penalty and of a missing end.

    Args:
        x: any tensor. [...]
        mask: True where x counts. [...] bool

    Returns:
        The scaled values, 0 where the mask is False. [...]

    Raises:
        ValueError: shapes differ, or no position is True.
    """
    return zero_outside(x, mask) * torch.rsqrt(masked_var(x, mask) + VARIANCE_FLOOR)


def last_true_index(mask: Tensor) -> Tensor:
    """Position of the last True of every row.

    Args:
        mask: for example a response mask. [B, T] bool

    Returns:
        Indices into T. [B] int64

    Raises:
        ValueError: the mask has not two dimensions, or a row has no True.
    """
    require_rank(2, mask=mask)
    if mask.shape[1] == 0 or not bool(mask.any(dim=1).all()):
        raise ValueError(f"a row of the mask of shape {tuple(mask.shape)} has no True position")
    positions = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, positions, -1).amax(dim=1)
