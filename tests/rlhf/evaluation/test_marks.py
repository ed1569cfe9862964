from typing import Any

import pytest

from rlhf.evaluation.marks import marks

SETTINGS: dict[str, Any] = {"baseline": "sft", "kl_band": (0.5, 2.0), "accuracy_mark": 0.75}


def results(**policy: float) -> dict[str, dict[str, float]]:
    usual = {"kl": 1.0, "reward": 1.0, "judge_win_high": 0.9, "over_optimised": 0.0}
    return {"sft": {"kl": 0.0, "reward": 0.0}, "ppo": {**usual, **policy}}


def test_a_healthy_run() -> None:
    assert marks(results(), ["ppo"], accuracy=0.75, **SETTINGS) == {
        "ppo": {
            "kl": 1.0, "kl_low": 0.5, "kl_high": 2.0, "kl_inside_band": True, "reward_rose": True, "judge_fell": False,
            "over_optimised": False,
        },
        "reward_model": {"accuracy": 0.75, "mark": 0.75, "passed": True},
    }  # fmt: skip


@pytest.mark.parametrize(("kl", "inside"), [(0.49, False), (0.5, True), (2.0, True), (2.01, False)])
def test_the_band_of_kl_includes_its_ends(kl: float, inside: bool) -> None:
    assert marks(results(kl=kl), ["ppo"], accuracy=None, **SETTINGS)["ppo"]["kl_inside_band"] is inside


@pytest.mark.parametrize(
    ("reward", "high", "rose", "fell"), [(1.0, 0.49, True, True), (-1.0, 0.49, False, True), (1.0, 0.5, True, False)]
)
def test_reward_and_judge_are_told_apart(reward: float, high: float, rose: bool, fell: bool) -> None:
    found = marks(results(reward=reward, judge_win_high=high), ["ppo"], accuracy=None, **SETTINGS)["ppo"]
    assert (found["reward_rose"], found["judge_fell"]) == (rose, fell)


def test_a_reward_model_below_its_mark_and_one_that_was_not_measured() -> None:
    assert marks(results(), ["ppo"], accuracy=0.7499, **SETTINGS)["reward_model"]["passed"] is False
    assert "reward_model" not in marks(results(), ["ppo"], accuracy=None, **SETTINGS)
