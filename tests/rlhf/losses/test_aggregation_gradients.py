"""Aggregations: their gradients, with poison under the mask, and what they refuse."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.losses.aggregation import pair_mean, sequence_mean, sequence_sum, token_mean

LOSS = torch.tensor([[1.0, 2.0, 3.0], [5.0, 9.0, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, False, False]])
FAMILY: dict[str, Callable[..., Tensor]] = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "sequence_sum": functools.partial(sequence_sum, length=10),
}
family = pytest.mark.parametrize("aggregate", FAMILY.values(), ids=FAMILY)
WEIGHTS = {
    "token_mean": [[1 / 4, 1 / 4, 1 / 4], [1 / 4, 0, 0]],
    # A third of a half for each token of the long response, a half for the short one's only token.
    "sequence_mean": [[1 / 6, 1 / 6, 1 / 6], [1 / 2, 0, 0]],
    "sequence_sum": [[1 / 20, 1 / 20, 1 / 20], [1 / 20, 0, 0]],
}


@pytest.mark.parametrize("poison", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("name", FAMILY)
def test_the_gradient_is_the_weight_of_a_token_and_zero_under_the_mask(name: str, poison: float) -> None:
    loss = torch.where(MASK, LOSS, poison).requires_grad_()
    FAMILY[name](loss, MASK).backward()
    assert loss.grad is not None
    torch.testing.assert_close(loss.grad, torch.tensor(WEIGHTS[name], dtype=torch.float64))


@family
def test_gradcheck(aggregate: Callable[..., Tensor]) -> None:
    assert torch.autograd.gradcheck(lambda x: aggregate(x, MASK), LOSS.clone().requires_grad_())


@family
def test_shapes_are_not_broadcast(aggregate: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(2, 1\) but x has \(2, 3\)"):
        aggregate(LOSS, MASK[:, :1])


@pytest.mark.parametrize("aggregate", [sequence_mean, functools.partial(sequence_sum, length=10)])
def test_a_row_of_tokens_is_no_batch(aggregate: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"loss has shape \(3,\) but must have 2 dimensions"):
        aggregate(LOSS[0], MASK[0])


def test_nothing_to_divide_by_is_refused() -> None:
    nothing = torch.zeros_like(MASK)
    for aggregate, name in ((sequence_mean, "total_sequences"), (FAMILY["sequence_sum"], "total_sequences")):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            aggregate(LOSS, nothing)
    with pytest.raises(ValueError, match="length is 0"):
        sequence_sum(LOSS, MASK, length=0)
    with pytest.raises(ValueError, match="total_pairs is 0"):
        pair_mean(LOSS[0, :0])


def test_pairs_add_up_and_each_weighs_the_same() -> None:
    loss = LOSS[1].clone().requires_grad_()
    parts = pair_mean(loss[:1], total_pairs=3) + pair_mean(loss[1:], total_pairs=3)
    # (5 + 9 + 9) / 3
    assert parts.item() == pytest.approx(23 / 3)
    assert torch.autograd.gradcheck(pair_mean, loss)
