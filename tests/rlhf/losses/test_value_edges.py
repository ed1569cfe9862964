"""The value loss at both ends of its range, in shares of a batch, and in every refused shape."""

import pytest
import torch

from rlhf.losses.value import clipped_value_loss, explained_variance

ATOL = 1e-6
FULL = torch.tensor([[True]])


def one(number: float) -> torch.Tensor:
    return torch.tensor([[number]])


def test_the_range_ends_below_as_well_as_above() -> None:
    # V fell by 1 where 0.2 is allowed: clipped to 0.8, error 0.8^2 = 0.64 against 0 of the plain one.
    loss, clip_fraction = clipped_value_loss(one(0.0), one(1.0), one(0.0), FULL, clip_range=0.2)
    assert loss.item() == pytest.approx(0.5 * 0.64, abs=ATOL)
    assert clip_fraction == 1
    # V rose by 1: clipped to 1.2, error (1.2 - 2)^2 = 0.64, again against 0.
    loss, clip_fraction = clipped_value_loss(one(2.0), one(1.0), one(2.0), FULL, clip_range=0.2)
    assert loss.item() == pytest.approx(0.5 * 0.64, abs=ATOL)
    assert clip_fraction == 1


def test_the_clip_fraction_is_a_share_of_the_whole_batch() -> None:
    part = clipped_value_loss(one(0.0), one(1.0), one(0.0), FULL, clip_range=0.2, total_tokens=4)
    assert part.clip_fraction.item() == 0.25
    assert part.loss.item() == pytest.approx(0.5 * 0.64 / 4, abs=ATOL)


@pytest.mark.parametrize("name", ["old_values", "returns", "response_mask"])
def test_each_shape_is_checked(name: str) -> None:
    # Widths of 1 would broadcast in silence.
    tensors = {key: torch.ones(2, 3) for key in ("values", "old_values", "returns")}
    tensors["response_mask"] = torch.ones(2, 3, dtype=torch.bool)
    tensors[name] = tensors[name][:, :1]
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 1\) but values has \(2, 3\)"):
        clipped_value_loss(**tensors, clip_range=None)


@pytest.mark.parametrize("name", ["values", "returns", "response_mask"])
def test_explained_variance_checks_each_shape_by_name(name: str) -> None:
    names = ("values", "returns", "response_mask")
    tensors = {key: torch.rand(2, 3) for key in names} | {"response_mask": torch.ones(2, 3, dtype=torch.bool)}
    tensors[name] = tensors[name][:, :1]
    other = name if name != "values" else "returns"
    with pytest.raises(ValueError, match=rf"^{other} has shape \(\d, \d\) but values has \(\d, \d\)"):
        explained_variance(**tensors)
