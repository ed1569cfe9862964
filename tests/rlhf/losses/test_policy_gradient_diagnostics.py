"""What is measured beside the loss is masked like the loss, or drift reads lower than it is."""

import math

import pytest
import torch

from rlhf.losses.policy_gradient import clipped_policy_loss


def test_diagnostics_are_means_over_response_tokens_and_not_over_the_padding() -> None:
    # Two of five tokens count, with ratios 1.5 and 1: approx_kl is k3 = ((0.5 - ln 1.5) + 0) / 2 = 0.04727; over all
    # five places it would read 0.01891. One of two is clipped, the mean ratio is 1.25.
    mask = torch.tensor([[True, True, False, False, False]])
    logprobs = torch.tensor([[math.log(1.5), 0.0, 0.0, 0.0, 0.0]])
    found = clipped_policy_loss(
        logprobs, torch.zeros_like(logprobs), torch.ones_like(logprobs), mask, clip_range_low=0.2, clip_range_high=0.2,
        dual_clip=None,
    )  # fmt: skip
    assert float(found.approx_kl) == pytest.approx((0.5 - math.log(1.5)) / 2, abs=1e-6)
    assert float(found.clip_fraction) == pytest.approx(0.5)
    assert float(found.mean_ratio) == pytest.approx(1.25)
