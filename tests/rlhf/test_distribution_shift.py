"""Effective sample size and the KL of an update: by hand, by identity, blind to what lies under the mask."""

import math

import pytest
import torch

from rlhf.distribution_shift import effective_share, effective_sizes, mean_step_kl, weight_sums

MASK = torch.tensor([[False, True, True], [False, True, False]])
OLD = torch.full((2, 3), -2.0)
# Ratios: 2 and 1/2 in the first row, 4 in the second.
NOW = OLD + torch.tensor([[9.0, math.log(2), -math.log(2)], [9.0, math.log(4), 9.0]])


def test_by_hand():
    sums = weight_sums(NOW, OLD, MASK)
    found = effective_sizes(sums)
    # tokens 2, 0.5, 4: 6.5^2 / (3 * 20.25)
    assert found["ess_tokens"] == pytest.approx(42.25 / 60.75, rel=1e-6)
    # responses 2 * 0.5 = 1 and 4: 25 / (2 * 17)
    assert found["ess_responses"] == pytest.approx(25 / 34, rel=1e-6)
    # k3 of ratios 2, 0.5, 4: (1 - ln 2) + (-0.5 + ln 2) + (3 - ln 4), over three tokens
    assert mean_step_kl(NOW, OLD, MASK) == pytest.approx((3.5 - math.log(4)) / 3, rel=1e-6)


def test_equal_policies_lose_nothing_and_a_constant_factor_does_not_count():
    assert effective_sizes(weight_sums(OLD, OLD, MASK)) == {"ess_tokens": 1, "ess_responses": 1}
    assert effective_sizes(weight_sums(OLD + 0.3, OLD, MASK))["ess_tokens"] == pytest.approx(1)
    assert mean_step_kl(OLD, OLD, MASK) == 0


def test_one_weight_that_is_all_leaves_one_sample():
    now = OLD.clone()
    now[1, 1] = 18.0
    assert effective_sizes(weight_sums(now, OLD, MASK))["ess_tokens"] == pytest.approx(1 / 3, rel=1e-6)


def test_nothing_under_the_mask_is_read():
    poisoned = torch.where(MASK, NOW, torch.nan), torch.where(MASK, OLD, torch.inf)
    assert weight_sums(*poisoned, MASK) == weight_sums(NOW, OLD, MASK)
    assert mean_step_kl(*poisoned, MASK) == mean_step_kl(NOW, OLD, MASK)


def test_micro_batches_add_up():
    parts = [weight_sums(NOW[row], OLD[row], MASK[row]) for row in (slice(0, 1), slice(1, 2))]
    added = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert added == pytest.approx(weight_sums(NOW, OLD, MASK), rel=1e-12)


def test_runaway_ratios_stay_finite_and_nothing_is_zero_samples():
    found = effective_sizes(weight_sums(OLD + 1e4 * MASK, OLD, MASK))
    assert found["ess_responses"] == pytest.approx(1.0)
    assert effective_sizes(weight_sums(OLD, OLD, MASK & ~MASK)) == {"ess_tokens": 0, "ess_responses": 0}


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"old_logprobs has shape \(2, 2\)"):
        weight_sums(NOW, OLD[:, 1:], MASK)
    with pytest.raises(ValueError, match="mask has shape"):
        mean_step_kl(NOW, OLD, MASK[:, 1:])
    with pytest.raises(ValueError, match="count is 0"):
        effective_share(1.0, 1.0, 0.0)
