"""Masked sums at the edges: number types, one column, no column, and nothing that varies."""

import pytest
import torch

from rlhf.masking import VARIANCE_FLOOR, last_true_index, masked_scale, masked_whiten, zero_outside


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_the_number_type_is_kept(dtype: torch.dtype) -> None:
    kept = zero_outside(torch.ones(1, 2, dtype=dtype), torch.tensor([[True, False]]))
    assert kept.dtype == dtype
    assert kept.tolist() == [[1, 0]]


def test_one_column_has_a_last_true_and_no_column_has_none() -> None:
    assert last_true_index(torch.ones(2, 1, dtype=torch.bool)).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"shape \(2, 0\) has no True position"):
        last_true_index(torch.ones(2, 0, dtype=torch.bool))


def test_scaling_what_does_not_vary_divides_by_the_root_of_the_floor() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    same = torch.full((1, 4), 2.0, dtype=torch.float64)
    # Variance 0: 2 / sqrt(0 + 1e-8) = 20000, finite and of the right sign.
    assert masked_scale(same, mask)[0].tolist() == pytest.approx([2.0 / VARIANCE_FLOOR**0.5] * 4)
    assert masked_whiten(same, mask)[0].tolist() == [0.0] * 4
