"""Best-of-n: the bound, the subset weights and the tie rule, against values worked out by hand."""

import itertools
import math

import pytest

from rlhf.evaluation.frontier import best_of_frontier, best_of_kl, best_of_values, best_of_weights

ATOL = 1e-12


def test_kl_bound_by_hand() -> None:
    assert best_of_kl(1) == 0.0
    # log 4 - 3/4 = 1.3862943611 - 0.75
    assert best_of_kl(4) == pytest.approx(0.6362943611198906, abs=ATOL)


def test_kl_bound_refuses_zero() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        best_of_kl(0)


def test_weights_by_hand() -> None:
    # Pairs out of 4 samples: 6. The best is rank 2 in 1 of them, rank 3 in 2, rank 4 in 3.
    assert best_of_weights(2, 4) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6], abs=ATOL)


def test_one_of_n_is_the_mean_and_all_of_n_is_the_best() -> None:
    rewards, values = [0.1, 0.9, 0.5], [3.0, 6.0, 9.0]
    assert best_of_values(rewards, values, 1) == pytest.approx(6.0, abs=ATOL)
    assert best_of_values(rewards, values, 3) == pytest.approx(6.0, abs=ATOL)


def test_matches_enumeration_of_subsets() -> None:
    rewards, values = [0.3, -1.0, 2.0, 0.7, 0.1], [1.0, 2.0, 3.0, 4.0, 5.0]
    picked = [values[max(subset, key=rewards.__getitem__)] for subset in itertools.combinations(range(5), 3)]
    assert best_of_values(rewards, values, 3) == pytest.approx(sum(picked) / math.comb(5, 3), abs=ATOL)


def test_equal_rewards_share_their_weight() -> None:
    # Both orders of the tied samples must give the same: (0 + 10) / 2.
    assert best_of_values([1.0, 1.0], [0.0, 10.0], 2) == pytest.approx(5.0, abs=ATOL)
    assert best_of_values([1.0, 1.0], [10.0, 0.0], 2) == pytest.approx(5.0, abs=ATOL)


def test_frontier_averages_over_prompts() -> None:
    samples = [{"reward": [0.0, 1.0], "judge": [2.0, 4.0]}, {"reward": [1.0, 0.0], "judge": [10.0, 20.0]}]
    rows = best_of_frontier(samples, sizes=[1, 2])
    # n=1: judge (3 + 15) / 2; n=2: (4 + 10) / 2.
    assert rows[0] == {"n": 1, "kl": 0.0, "reward": 0.5, "judge": 9.0}
    assert rows[1]["judge"] == pytest.approx(7.0, abs=ATOL)
    assert rows[1]["reward"] == pytest.approx(1.0, abs=ATOL)


def test_frontier_refuses_more_than_was_sampled() -> None:
    with pytest.raises(ValueError, match="n is 3"):
        best_of_frontier([{"reward": [0.0, 1.0]}], sizes=[3])
    with pytest.raises(ValueError, match="no prompts"):
        best_of_frontier([], sizes=[1])
