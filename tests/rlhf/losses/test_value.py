"""The value loss and explained variance."""

import math

import pytest
import torch
from torch import Tensor

from rlhf.losses.value import clipped_value_loss, explained_variance

ATOL = 1e-6
MASK = torch.tensor([[False, True, True, True]])
VALUES = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
OLD = torch.tensor([[0.0, 0.5, 0.9, 0.5]])
RETURNS = torch.tensor([[0.0, 3.0, 0.0, 0.0]])


def test_by_hand() -> None:
    # clip 0.2. Token 1: plain (1-3)^2 = 4, clipped (0.7-3)^2 = 5.29 -> 5.29, the step towards 3 went too far at once.
    # Token 2: inside the range, 1. Token 3: plain 1, clipped 0.7^2 = 0.49 -> 1.
    loss, clip_fraction = clipped_value_loss(VALUES, OLD, RETURNS, MASK, clip_range=0.2)
    assert loss.item() == pytest.approx(0.5 * (5.29 + 1 + 1) / 3, abs=ATOL)
    assert clip_fraction.item() == pytest.approx(1 / 3, abs=ATOL)


def test_without_a_range_or_with_a_wide_one_it_is_half_the_squared_error() -> None:
    for clip_range in (None, 100.0):
        loss, clip_fraction = clipped_value_loss(VALUES, OLD, RETURNS, MASK, clip_range=clip_range)
        assert loss.item() == pytest.approx(0.5 * (4 + 1 + 1) / 3, abs=ATOL)
        assert clip_fraction == 0


def test_gradient_stops_where_the_clipped_error_is_used() -> None:
    values = VALUES.clone().requires_grad_()
    clipped_value_loss(values, OLD, RETURNS, MASK, clip_range=0.2).loss.backward()
    assert values.grad is not None
    # (V - R) / 3 where plain, 0 where clipped
    assert values.grad.tolist() == [pytest.approx([0, 0, 1 / 3, 1 / 3], abs=ATOL)]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_lies_under_the_mask_reaches_neither_value_nor_gradient(poison: float) -> None:
    values, old, returns = (torch.where(MASK, x, poison) for x in (VALUES, OLD, RETURNS))
    values.requires_grad_()
    found = clipped_value_loss(values, old, returns, MASK, clip_range=0.2)
    found.loss.backward()
    assert found == clipped_value_loss(VALUES, OLD, RETURNS, MASK, clip_range=0.2)
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert torch.equal(explained_variance(values, returns, MASK), explained_variance(VALUES, RETURNS, MASK))


def test_returns_and_old_values_take_no_gradient() -> None:
    old, returns = OLD.clone().requires_grad_(), RETURNS.clone().requires_grad_()
    clipped_value_loss(VALUES.clone().requires_grad_(), old, returns, MASK, clip_range=0.2).loss.backward()
    assert old.grad is None
    assert returns.grad is None


def test_micro_batches_add_up() -> None:
    def part(columns: slice) -> Tensor:
        tensors = (x[:, columns] for x in (VALUES, OLD, RETURNS, MASK))
        return clipped_value_loss(*tensors, clip_range=0.2, total_tokens=3).loss

    whole = clipped_value_loss(VALUES, OLD, RETURNS, MASK, clip_range=0.2).loss
    assert (part(slice(0, 2)) + part(slice(2, 4))).item() == pytest.approx(whole.item(), abs=ATOL)


def test_gradcheck() -> None:
    values, old, returns = (x.double() for x in (VALUES, OLD, RETURNS))
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: clipped_value_loss(v, old, returns, MASK, clip_range=0.2).loss, values)


def test_explained_variance_by_hand() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    returns = torch.tensor([[1.0, 2.0, 3.0]])
    assert explained_variance(returns, returns, mask) == 1
    # A constant offset is not variance.
    assert explained_variance(returns + 5, returns, mask).item() == pytest.approx(1, abs=ATOL)
    assert explained_variance(torch.zeros(1, 3), returns, mask).item() == pytest.approx(0, abs=ATOL)
    # Residuals 2, 4, 6 have variance 4 times that of 1, 2, 3.
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3, abs=ATOL)
    assert explained_variance(returns, torch.ones(1, 3), mask) == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"old_values has shape \(4,\) but values has \(1, 4\)"):
        clipped_value_loss(VALUES, OLD[0], RETURNS, MASK, clip_range=0.2)
    with pytest.raises(ValueError, match="clip_range is 0"):
        clipped_value_loss(VALUES, OLD, RETURNS, MASK, clip_range=0.0)
    with pytest.raises(ValueError, match="total_tokens is 0"):
        clipped_value_loss(VALUES, OLD, RETURNS, torch.zeros_like(MASK), clip_range=0.2)
    with pytest.raises(ValueError, match=r"returns has shape \(4,\) but values has \(1, 4\)"):
        explained_variance(VALUES, RETURNS[0], MASK)
    with pytest.raises(ValueError, match="no position is True"):
        explained_variance(VALUES, RETURNS, torch.zeros_like(MASK))
