"""Exact and resampled intervals of two models on the same prompts."""

import math

import numpy as np
import pytest

from rlhf.evaluation.paired_tests import (
    clopper_pearson,
    paired_difference,
    paired_ratio,
    paired_share_difference,
    paired_wins,
    upper_tail,
    win_interval,
)

HOW = {"resamples": 500, "seed": 1}


def test_the_upper_tail_by_hand() -> None:
    # Four throws of a coin: P(X >= 3) = (4 + 1) / 16.
    assert upper_tail(3, 4, 0.5) == pytest.approx(5 / 16)
    # P(X >= 2), three throws, chance 0.1: 3 x 0.01 x 0.9 + 0.001.
    assert upper_tail(2, 3, 0.1) == pytest.approx(0.028)
    assert [upper_tail(k, 4, 0.5) for k in (-1, 0, 5)] == [1.0, 1.0, 0.0]
    assert [upper_tail(2, 4, share) for share in (0.0, 1.0)] == [0.0, 1.0]
    assert upper_tail(5000, 10000, 0.5) == pytest.approx(0.5 + math.comb(10000, 5000) / 2**10001, rel=1e-9)


@pytest.mark.parametrize(
    ("successes", "n", "tail", "low", "high"),
    [
        # Table 1 of Newcombe 1998 (exact method), https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E
        (81, 263, 0.025, 0.2527, 0.3676),
        (15, 148, 0.025, 0.0578, 0.1617),
        (0, 20, 0.025, 0.0, 0.1684),
        (1, 29, 0.025, 0.0009, 0.1776),
        (29, 29, 0.025, 0.8806, 1.0),
    ],
)
def test_the_exact_interval_of_a_proportion(successes: int, n: int, tail: float, low: float, high: float) -> None:
    assert clopper_pearson(successes, n, tail=tail) == pytest.approx((low, high), abs=5e-5)


def test_without_a_trial_nothing_is_known() -> None:
    assert clopper_pearson(0, 0, tail=0.025) == (0.0, 1.0)


def test_the_exact_interval_covers_at_least_what_it_says_for_every_truth() -> None:
    n, tail = 25, 0.03
    for share in np.linspace(0.02, 0.98, 49):
        below = sum(  # chance that the low end lies above the truth
            upper_tail(k, n, share) - upper_tail(k + 1, n, share)
            for k in range(n + 1)
            if clopper_pearson(k, n, tail=tail)[0] > share
        )
        assert below <= tail


def test_the_test_and_the_interval_agree_whether_a_half_is_cleared() -> None:
    for wins in range(41):
        found = win_interval(wins, 40 - wins, 0, tail=0.03)
        assert (found.exact_low > 0.5) == (found.p_value <= 0.03)
        assert found.low <= min(found.exact_low, found.bootstrap_low)


def test_ties_count_half_in_the_rate_and_nothing_in_the_test() -> None:
    few, many = win_interval(30, 10, 0, tail=0.025), win_interval(30, 10, 40, tail=0.025)
    assert (few.rate, many.rate) == (0.75, 0.625)  # (30 + 20) / 80
    assert few.p_value == many.p_value
    assert many.exact_low - 0.5 == pytest.approx((few.exact_low - 0.5) / 2)


def test_from_few_prompts_the_exact_end_is_the_wider_one() -> None:
    # The bootstrap of eight wins out of eight knows no doubt; 8 of 8 has p = 1/256.
    found = win_interval(8, 0, 0, tail=0.025)
    assert (found.rate, found.bootstrap_low, found.p_value) == (1.0, 1.0, pytest.approx(1 / 256))
    assert found.low == found.exact_low == pytest.approx(0.025 ** (1 / 8))


def test_the_bootstrap_end_is_where_many_resamples_put_it() -> None:
    counts = np.random.default_rng(4).multinomial(60, [0.5, 0.3, 0.2], size=200_000)
    rates = (counts[:, 0] + counts[:, 2] / 2) / 60
    found = win_interval(30, 18, 12, tail=0.03)
    assert found.bootstrap_low == pytest.approx(np.quantile(rates, 0.03), abs=1 / 120)
    assert np.mean(rates < found.bootstrap_low) < 0.03 <= np.mean(rates <= found.bootstrap_low) + 0.002
    mirrored = win_interval(18, 30, 12, tail=0.03)
    assert (mirrored.low, mirrored.high) == (pytest.approx(1 - found.high), pytest.approx(1 - found.low))


def test_scores_become_wins_losses_and_ties() -> None:
    found = paired_wins([1.0, 0.0, 0.505, 2.0], [0.5, 0.5, 0.5, 0.5], tolerance=0.01, tail=0.025)
    assert (found.wins, found.losses, found.ties, found.rate) == (2, 1, 1, 0.625)


def test_a_difference_of_shares_is_not_sure_of_itself_because_nothing_happened() -> None:
    same = paired_share_difference([1.0] * 8, [1.0] * 8, tail=0.025, **HOW)
    worst = 1 - 0.0125 ** (1 / 8)  # Clopper-Pearson for 0 of 8 with half the error
    assert (same.mean, same.low, same.high) == (0.0, pytest.approx(-worst), pytest.approx(worst))
    # Of other numbers there is the bootstrap alone.
    assert paired_difference([0.5] * 8, [0.25] * 8, tail=0.025, **HOW)[:3] == (0.25, 0.25, 0.25)


def test_a_difference_counts_what_was_gained_against_what_was_lost() -> None:
    ours, theirs = [1.0] * 90 + [0.0] * 10, [1.0] * 80 + [0.0] * 20
    found = paired_share_difference(ours, theirs, tail=0.025, **HOW)
    assert found.mean == pytest.approx(0.1)
    assert 0 < found.low < 0.1 < found.high < 0.25


def test_a_ratio_of_sums_with_its_interval() -> None:
    rng = np.random.default_rng(3)
    theirs = rng.uniform(5, 15, size=300)
    found = paired_ratio(theirs * rng.uniform(1.0, 1.4, size=300), theirs, tail=0.025, **HOW)
    assert found.mean == pytest.approx(1.2, abs=0.02)
    assert 0.01 < found.high - found.low < 0.06
    assert paired_ratio([12.0] * 4, [8.0] * 4, tail=0.025, **HOW)[:3] == (1.5, 1.5, 1.5)
    assert paired_ratio([1.0, 1.0], [0.0, 1.0], tail=0.025, **HOW).high == math.inf


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: clopper_pearson(3, 2, tail=0.1), "successes is 3 and n is 2"),
        (lambda: clopper_pearson(1, 2, tail=0.5), "tail is 0.5"),
        (lambda: win_interval(0, 0, 0, tail=0.1), "not all 0"),
        (lambda: win_interval(-1, 2, 0, tail=0.1), "at least 0"),
        (lambda: paired_difference([1.0], [1.0, 2.0], tail=0.1, **HOW), r"shape \(1,\) and b \(2,\)"),
        (lambda: paired_difference([math.nan], [1.0], tail=0.1, **HOW), "not finite"),
        (lambda: paired_share_difference([0.5], [1.0], tail=0.1, **HOW), "neither 0 nor 1"),
        (lambda: paired_ratio([1.0], [0.0], tail=0.1, **HOW), "b sums to 0"),
    ],
)
def test_what_cannot_be_computed_is_refused(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()  # type: ignore[operator]
