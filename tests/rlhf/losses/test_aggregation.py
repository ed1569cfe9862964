"""Aggregations by hand, and independent of how a batch is cut."""

import functools
import math

import pytest
import torch

from rlhf.losses.aggregation import pair_mean, sequence_mean, sequence_sum, token_mean

LOSS = torch.tensor([[1.0, 2.0, 3.0], [5.0, 9.0, 9.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_values_by_hand() -> None:
    # (1 + 2 + 3 + 5) / 4
    assert token_mean(LOSS, MASK) == 2.75
    # ((1 + 2 + 3) / 3 + 5) / 2
    assert sequence_mean(LOSS, MASK) == 3.5
    # ((1 + 2 + 3) / 10 + 5 / 10) / 2
    assert sequence_sum(LOSS, MASK, length=10).item() == pytest.approx(0.55)
    assert pair_mean(torch.tensor([1.0, 2.0, 6.0])) == 3


def test_equal_lengths_make_token_and_sequence_means_equal() -> None:
    full = torch.ones_like(MASK)
    assert token_mean(LOSS, full).item() == pytest.approx(sequence_mean(LOSS, full).item())
    assert token_mean(LOSS, full).item() == pytest.approx(sequence_sum(LOSS, full, length=3).item())


@pytest.mark.parametrize(
    ("aggregate", "total"),
    [
        (token_mean, {"total_tokens": 4}),
        (sequence_mean, {"total_sequences": 2}),
        (functools.partial(sequence_sum, length=10), {"total_sequences": 2}),
    ],
)
def test_micro_batches_add_up_to_the_batch(aggregate: object, total: dict[str, float]) -> None:
    assert callable(aggregate)
    parts = sum(aggregate(LOSS[i : i + 1], MASK[i : i + 1], **total) for i in range(2))
    assert float(parts) == pytest.approx(float(aggregate(LOSS, MASK)))


def test_a_mean_of_means_would_depend_on_the_cut() -> None:
    naive = (token_mean(LOSS[:1], MASK[:1]) + token_mean(LOSS[1:], MASK[1:])) / 2
    assert naive == 3.5
    assert token_mean(LOSS, MASK) == 2.75


def test_what_lies_under_the_mask_is_not_read() -> None:
    poisoned = torch.where(MASK, LOSS, math.nan)
    assert token_mean(poisoned, MASK) == 2.75
    assert sequence_mean(poisoned, MASK) == 3.5
    assert sequence_sum(poisoned, MASK, length=10).item() == pytest.approx(0.55)


def test_an_empty_row_is_no_sequence_and_an_empty_micro_batch_adds_nothing() -> None:
    nothing = torch.zeros_like(MASK)
    row_empty = torch.tensor([[True, True, True], [False, False, False]])
    assert sequence_mean(LOSS, row_empty) == 2
    assert token_mean(LOSS, nothing, total_tokens=4) == 0
    with pytest.raises(ValueError, match="total_tokens is 0"):
        token_mean(LOSS, nothing)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask has shape \(2, 1\) but x has \(2, 3\)"):
        token_mean(LOSS, MASK[:, :1])
    with pytest.raises(ValueError, match="must have 1 dimensions"):
        pair_mean(LOSS)
