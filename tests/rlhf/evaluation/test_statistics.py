"""Intervals, tests and agreement against published or hand-worked numbers."""

import math

import numpy as np
import pytest

import rlhf.evaluation.statistics
from rlhf.evaluation.statistics import (
    cohen_kappa,
    mean_interval,
    paired_win_rate,
    sign_test,
    wilson_interval,
    win_points,
)


def test_mean_and_size_are_exact_and_the_interval_has_the_normal_width() -> None:
    # 500 zeros and 500 ones: standard error 0.5 / sqrt(1000) = 0.01581; 1.96 of them = 0.031
    found = mean_interval([0.0, 1.0] * 500, seed=1)
    assert (found.mean, found.n) == (0.5, 1000)
    assert found.low == pytest.approx(0.469, abs=0.004)
    assert found.high == pytest.approx(0.531, abs=0.004)


def test_the_level_is_kept() -> None:
    # 300 samples of 40 normal numbers: about 80% of the 80% intervals should hold the true mean 0.
    generator = np.random.default_rng(0)
    inside = 0
    for seed in range(300):
        found = mean_interval(generator.normal(size=40), seed=seed, resamples=400, level=0.8)
        inside += found.low <= 0 <= found.high
    # Three standard errors of a share of 0.8 among 300 are 0.07; the percentile bootstrap is a little narrow.
    assert 0.71 <= inside / 300 <= 0.87


def test_equal_seeds_give_equal_intervals() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_constant_values_have_no_width() -> None:
    assert mean_interval([2.0] * 9, seed=0)[:3] == (2.0, 2.0, 2.0)


def test_many_values_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=64)
    whole = mean_interval(values, seed=0)
    monkeypatch.setattr(rlhf.evaluation.statistics, "RESAMPLE_ELEMENTS", 640)
    blocks = mean_interval(values, seed=0)
    assert blocks == pytest.approx(whole, abs=0.03)


def test_win_points_by_hand() -> None:
    assert win_points([3.0, 1.0, 2.0, 2.05], [1.0, 3.0, 2.0, 2.0], tolerance=0.1).tolist() == [1, 0, 0.5, 0.5]
    assert win_points([2.05], [2.0]).tolist() == [1]


def test_win_rate_of_a_policy_against_itself_is_a_half_without_width() -> None:
    assert paired_win_rate([1.0, 5.0, 2.0], [1.0, 5.0, 2.0], seed=0) == (0.5, 0.5, 0.5, 3)


def test_win_rates_of_both_sides_add_up_to_one() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 4, size=40), generator.integers(0, 4, size=40)
    one, other = paired_win_rate(a, b, seed=0), paired_win_rate(b, a, seed=0)
    assert one.mean + other.mean == pytest.approx(1)
    assert one.low == pytest.approx(1 - other.high)


def test_win_rate_by_hand() -> None:
    # win, win, tie, loss: 2.5 / 4
    assert paired_win_rate([2.0, 2.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], seed=0).mean == 0.625


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.959964: z^2 = 3.841459; centre (0.8 + 0.192073) / 1.384146 = 0.716740
    # half 1.959964 / 1.384146 * sqrt(0.016 + 0.0096036) = 0.226578
    found = wilson_interval(8, 10)
    assert found.mean == 0.8
    assert found.low == pytest.approx(0.490162, abs=2e-6)
    assert found.high == pytest.approx(0.943318, abs=2e-6)


def test_wilson_at_the_ends() -> None:
    # 0 of n: the upper end is z^2 / (n + z^2)
    none = wilson_interval(0, 20)
    assert none.low == 0
    assert none.high == pytest.approx(3.841459 / 23.841459, abs=1e-6)
    full = wilson_interval(20, 20)
    assert full.high == 1
    assert full.low == pytest.approx(1 - none.high)


def test_sign_test_by_hand() -> None:
    # 9 wins, 1 loss: 2 (1 + 10) / 1024
    assert sign_test(9, 1) == pytest.approx(22 / 1024)
    assert sign_test(1, 9) == sign_test(9, 1)
    # 5 losses in a row: 2 / 32
    assert sign_test(0, 5) == pytest.approx(1 / 16)
    assert sign_test(7, 7) == 1
    assert sign_test(0, 0) == 1


def test_sign_test_with_thousands_of_comparisons() -> None:
    # Normal approximation with continuity correction: z = (2600 - 2500 - 0.5) / sqrt(1250) = 2.8143, p = 0.00489
    assert sign_test(2600, 2400) == pytest.approx(0.00489, abs=2e-5)


def test_kappa_by_hand() -> None:
    # Cohen's example form: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no. Observed 0.7; chance 0.5*0.6 + 0.5*0.4 = 0.5.
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa(a, a) == 1
    assert cohen_kappa([0, 0, 1, 1], [0, 1, 0, 1]) == 0
    assert cohen_kappa([1, 1], [1, 1]) == 1


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"b has shape \(1,\) but a has \(2,\)"):
        paired_win_rate([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match=r"values has shape \(0,\)"):
        mean_interval([], seed=0)
    with pytest.raises(ValueError, match="1 numbers that are not finite"):
        mean_interval([1.0, math.nan], seed=0)
    with pytest.raises(ValueError, match="level is 95"):
        mean_interval([1.0], seed=0, level=95)
    with pytest.raises(ValueError, match="tolerance is -1"):
        win_points([1.0], [1.0], tolerance=-1)
    with pytest.raises(ValueError, match="successes is 3 and n is 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="negative"):
        sign_test(-1, 2)
    with pytest.raises(ValueError, match="a has 1 labels and b has 2"):
        cohen_kappa([1], [1, 2])
