"""Power and numbers of prompts, against the textbook and against simulation."""

import numpy as np
import pytest

from rlhf.evaluation.paired_tests import win_interval
from rlhf.evaluation.sample_size import detectable, power, prompts_for

HOW = {"ties": 0.0, "tail": 0.025}


def test_power_by_hand() -> None:
    # Six wins of six are needed: 1/64 <= 0.025 < 7/64. With a win rate of 0.9 that happens with 0.9^6.
    assert power(6, 0.9, **HOW) == pytest.approx(0.9**6)
    assert power(5, 0.99, **HOW) == 0.0  # 1/32 > 0.025: no result would do
    assert power(0, 0.9, **HOW) == 0.0
    # Half of twelve prompts are ties; 0.7 with ties half is 0.9 of the decided ones: 0.5 + 0.2 / 0.5.
    assert power(12, 0.7, ties=0.5, tail=0.025) == pytest.approx(0.9**6)


def test_power_is_what_the_gate_s_test_does() -> None:
    rng = np.random.default_rng(5)
    wins = rng.binomial(200, 0.6, size=2000)
    found = [win_interval(int(w), 200 - int(w), 0, tail=0.03).exact_low > 0.5 for w in wins]
    assert np.mean(found) == pytest.approx(power(200, 0.6, ties=0.0, tail=0.03), abs=0.03)


def test_the_number_of_prompts_is_near_the_normal_formula() -> None:
    # (1.960 + 0.842)^2 / 4 / 0.05^2 = 785, and the exact test needs a little more.
    found = prompts_for(0.55, wanted=0.8, **HOW)
    assert found is not None
    assert 785 <= found <= 825
    assert power(found, 0.55, **HOW) >= 0.8


def test_what_so_many_prompts_find() -> None:
    found = detectable(400, wanted=0.8, **HOW)
    assert found == pytest.approx(0.57, abs=0.003)  # 0.5 + 2.802 x 0.5 / 20
    assert power(400, found, **HOW) >= 0.8
    assert detectable(4, wanted=0.8, **HOW) is None
    assert detectable(400, wanted=0.8, ties=1.0, tail=0.025) is None


def test_what_no_number_of_prompts_would_find() -> None:
    assert prompts_for(0.5, wanted=0.8, **HOW) is None
    assert prompts_for(0.5001, wanted=0.8, **HOW) is None
    assert prompts_for(0.6, wanted=0.8, ties=1.0, tail=0.025) is None


def test_another_threshold_is_another_test() -> None:
    easier, harder = (prompts_for(0.7, wanted=0.8, threshold=threshold, **HOW) for threshold in (0.5, 0.6))
    assert easier is not None
    assert harder is not None
    assert harder > 3 * easier
