"""Masked sums and means: by hand, and blind to what lies under the mask."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.masking import (
    last_true_index,
    masked_mean,
    masked_scale,
    masked_sum,
    masked_var,
    masked_whiten,
    zero_outside,
)

ATOL = 1e-6
MASK = torch.tensor([[False, True, True], [True, False, False]])
X = torch.tensor([[9.0, 1.0, 3.0], [5.0, 9.0, 9.0]])


def test_values_by_hand() -> None:
    # True positions: 1, 3, 5. Sum 9, mean 3, variance (4 + 0 + 4) / 3.
    assert masked_sum(X, MASK) == 9
    assert masked_mean(X, MASK) == 3
    assert masked_var(X, MASK) == pytest.approx(8 / 3, abs=ATOL)
    # (1 - 3) / sqrt(8/3) = -1.2247449
    assert masked_whiten(X, MASK)[0, 1] == pytest.approx(-2 / math.sqrt(8 / 3), abs=ATOL)
    # 5 / sqrt(8/3): scaled, not shifted
    assert masked_scale(X, MASK)[1, 0] == pytest.approx(5 / math.sqrt(8 / 3), abs=ATOL)


def test_along_a_dimension() -> None:
    assert masked_sum(X, MASK, dim=1).tolist() == [4, 5]
    assert masked_mean(X, MASK, dim=1).tolist() == [2, 5]


def test_a_full_mask_is_the_plain_mean() -> None:
    assert masked_mean(X, torch.ones_like(MASK)) == pytest.approx(float(X.mean()), abs=ATOL)


@given(st.integers(0, 10_000))
def test_whitening_gives_mean_0_and_variance_1(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64) * 7 + 100
    mask = torch.rand(3, 5, generator=generator) < 0.6
    mask[0, :2] = True
    kept = masked_whiten(x, mask)[mask]
    assert float(kept.mean()) == pytest.approx(0, abs=1e-6)
    assert float((kept**2).mean()) == pytest.approx(1, abs=1e-6)


def test_scaling_keeps_every_sign_where_whitening_does_not() -> None:
    x = torch.tensor([[-0.1, -0.2, -0.9]])
    mask = torch.ones_like(x, dtype=torch.bool)
    assert bool((masked_scale(x, mask) < 0).all())
    assert bool((masked_whiten(x, mask) > 0).any())


def test_constant_values_whiten_to_zero_and_not_to_nan() -> None:
    assert masked_whiten(torch.full((1, 3), 2.0), torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_var, masked_whiten, masked_scale, zero_outside])
def test_what_lies_under_the_mask_reaches_neither_value_nor_gradient(function: object, poison: float) -> None:
    assert callable(function)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        result = function(leaf, MASK)
        result.square().sum().backward()
        assert leaf.grad is not None
        return result.detach(), leaf.grad

    clean_value, clean_gradient = run(X)
    value, gradient = run(torch.where(MASK, X, poison))
    assert torch.equal(value, clean_value)
    assert torch.equal(gradient, clean_gradient)
    assert bool((gradient[~MASK] == 0).all())


def test_an_empty_mask_has_a_sum_but_no_mean() -> None:
    nothing = torch.zeros_like(MASK)
    assert masked_sum(X, nothing) == 0
    with pytest.raises(ValueError, match="no position is True"):
        masked_mean(X, nothing)
    with pytest.raises(ValueError, match="no position is True"):
        masked_mean(X, torch.tensor([[True, True, True], [False, False, False]]), dim=1)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(3,\) but x has \(2, 3\)"):
        masked_mean(X, MASK[0])


def test_last_true_index() -> None:
    mask = torch.tensor([[True, False, False], [False, True, True], [True, False, True]])
    assert last_true_index(mask).tolist() == [0, 2, 2]
    with pytest.raises(ValueError, match="has no True position"):
        last_true_index(torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="2 dimensions"):
        last_true_index(torch.tensor([True]))
