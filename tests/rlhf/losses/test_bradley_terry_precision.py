"""Scores of half precision: their difference is taken in float32."""

import pytest
import torch

from rlhf.losses.bradley_terry import bradley_terry_loss


def test_the_difference_of_half_precision_scores_is_taken_in_float32() -> None:
    # 256 and -1 are exact in bfloat16; their difference 257 is not, it would be 256. So would 1 - 1/1024 become 1.
    chosen = torch.tensor([256.0, 1.0], dtype=torch.bfloat16)
    rejected = torch.tensor([-1.0, 2.0**-10], dtype=torch.bfloat16)
    found = bradley_terry_loss(chosen, rejected, torch.ones(2), margin=None, centering=0.0)
    assert found.margin.item() == pytest.approx((257 + 1 - 2**-10) / 2, abs=1e-6)
    # ln(1 + e^-257) is 0; ln(1 + e^-(1 - 1/1024)) = 0.313524, where ln(1 + e^-1) = 0.313262.
    assert found.loss.item() == pytest.approx(0.313524 / 2, abs=2e-6)
