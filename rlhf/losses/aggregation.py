"""From a loss per token to one number, in a way that does not depend on how a batch is cut.

A mean of the means of micro-batches weighs tokens of short micro-batches more. With the `total` of the whole batch
given, the results of its micro-batches add up to the result of the batch, gradients included.
"""

from collections.abc import Callable

from torch import Tensor

from rlhf.masking import masked_sum
from rlhf.shapes import require_rank

Aggregate = Callable[[Tensor, Tensor], Tensor]
"""Takes a loss per token [B, T] and its mask [B, T] to a scalar."""


def token_mean(loss: Tensor, mask: Tensor, *, total_tokens: float | None = None) -> Tensor:
    """Mean over tokens: every token weighs the same, long responses weigh more.

    Args:
        loss: per token; gradient flows. [B, T]
        mask: True where it counts. [B, T] bool
        total_tokens: True tokens of the whole batch, over all micro-batches and ranks; None when this is all of it.

    Returns:
        A scalar; this micro-batch's share of the mean when `total_tokens` is given.

    Raises:
        ValueError: shapes differ, or there is nothing to divide by.
    """
    return masked_sum(loss, mask) / _require_total("total_tokens", total_tokens, lambda: int(mask.sum()))


def sequence_mean(loss: Tensor, mask: Tensor, *, total_sequences: float | None = None) -> Tensor:
    """Mean over sequences of each sequence's token mean: every response weighs the same.

    It favours long wrong answers, because each of their tokens is blamed less.

    Args:
        loss: per token; gradient flows. [B, T]
        mask: True where it counts. [B, T] bool
        total_sequences: sequences with a True token in the whole batch; None when this is all of it.

    Returns:
        A scalar; this micro-batch's share of the mean when `total_sequences` is given.

    Raises:
        ValueError: shapes differ, or there is nothing to divide by.
    """
    require_rank(2, loss=loss, mask=mask)
    counts = mask.sum(dim=1)
    means = masked_sum(loss, mask, dim=1) / counts.clamp(min=1)
    return means.sum() / _require_total("total_sequences", total_sequences, lambda: int((counts > 0).sum()))


def sequence_sum(loss: Tensor, mask: Tensor, *, length: float, total_sequences: float | None = None) -> Tensor:
    """Mean over sequences of each sequence's token sum over one constant length: no length bias.

    Source: Liu et al. 2025 (Dr. GRPO), section 3.2, https://arxiv.org/abs/2503.20783

    Args:
        loss: per token; gradient flows. [B, T]
        mask: True where it counts. [B, T] bool
        length: the constant, usually the longest response allowed, tokens. > 0
        total_sequences: sequences with a True token in the whole batch; None when this is all of it.

    Returns:
        A scalar; this micro-batch's share of the mean when `total_sequences` is given.

    Raises:
        ValueError: shapes differ, or there is nothing to divide by.
    """
    require_rank(2, loss=loss, mask=mask)
    divisor = _require_total("length", length, lambda: 0)
    sequences = _require_total("total_sequences", total_sequences, lambda: int(mask.any(dim=1).sum()))
    return masked_sum(loss, mask) / (divisor * sequences)


def pair_mean(loss: Tensor, *, total_pairs: float | None = None) -> Tensor:
    """Mean over pairs.

    Args:
        loss: per pair; gradient flows. [B]
        total_pairs: pairs of the whole batch; None when this is all of it.

    Returns:
        A scalar; this micro-batch's share of the mean when `total_pairs` is given.

    Raises:
        ValueError: not one dimension, or there is nothing to divide by.
    """
    require_rank(1, loss=loss)
    return loss.sum() / _require_total("total_pairs", total_pairs, lambda: loss.shape[0])


def _require_total(name: str, given: float | None, count: Callable[[], int]) -> float:
    total = count() if given is None else given
    if not total > 0:
        raise ValueError(f"{name} is {total} but a mean needs a positive number to divide by")
    return total
