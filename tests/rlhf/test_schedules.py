import math

import pytest

from rlhf.schedules import SCHEDULES, constant, cosine, linear


def test_warm_up_rises_in_equal_steps_to_the_peak():
    # 10 steps, a fifth of them warm-up: 1/2, 2/2, then the fall begins at 1
    rate = linear(10, warmup_fraction=0.2, final_fraction=0.0)
    assert [rate(step) for step in range(3)] == [0.5, 1.0, 1.0]


def test_linear_falls_along_a_straight_line():
    # after warm-up (0 steps) over 4 steps to 0.2: 1, 0.8, 0.6, 0.4, and 0.2 at the end
    rate = linear(4, warmup_fraction=0.0, final_fraction=0.2)
    assert [rate(step) for step in range(5)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_is_halfway_down_in_the_middle():
    rate = cosine(8, warmup_fraction=0.0, final_fraction=0.1)
    assert rate(0) == 1.0
    # final + (1 - final) / 2 = 0.1 + 0.45
    assert rate(4) == pytest.approx(0.55)
    # a quarter: cos(pi / 4) = 0.70711, so 0.1 + 0.9 * (1.70711 / 2)
    assert rate(2) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert rate(8) == pytest.approx(0.1)
    assert rate(100) == pytest.approx(0.1)


def test_constant_stays_at_the_peak():
    rate = constant(10, warmup_fraction=0.1, final_fraction=1.0)
    assert [rate(0), rate(1), rate(9)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", SCHEDULES.values())
@pytest.mark.parametrize(("total", "warmup", "final"), [(0, 0.1, 1.0), (5, 1.0, 1.0), (5, -0.1, 1.0), (5, 0.1, 1.5)])
def test_arguments_out_of_range_are_refused(schedule, total, warmup, final):
    with pytest.raises(ValueError, match="wanted"):
        schedule(total, warmup_fraction=warmup, final_fraction=final)
