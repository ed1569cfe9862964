from typing import Any

import pytest

from tasks.marks import marks


def evaluation(**block: Any) -> dict[str, dict[str, Any]]:
    return {"evaluate": {"marks": block}}


@pytest.mark.parametrize(
    ("kl", "passed", "where"),
    [(0.5, True, "inside"), (2.6, True, "inside"), (3.5, True, "inside"), (0.49, False, "below"), (4, False, "above")],
)
def test_kl_in_its_band(kl: float, passed: bool, where: str) -> None:
    (mark,) = marks(evaluation(ppo={"kl": kl, "kl_low": 0.5, "kl_high": 3.5}))
    assert (mark.name, mark.value, mark.passed) == ("ppo.kl", kl, passed)
    assert mark.sentence == f"KL of ppo {kl:.2g} nats per response: {where} the band 0.5 to 3.5"


@pytest.mark.parametrize(("accuracy", "passed"), [(0.75, True), (0.849, True), (0.749, False)])
def test_preference_accuracy(accuracy: float, passed: bool) -> None:
    (mark,) = marks(evaluation(reward_model={"accuracy": accuracy, "mark": 0.75, "passed": passed}))
    said = "reached" if passed else "below"
    assert mark.passed is passed
    assert mark.sentence == f"preference accuracy of the reward model {accuracy:.3f}: {said} the mark 0.75"


@pytest.mark.parametrize("hacked", [True, 1.0])
def test_reward_that_rose_while_the_judge_fell(hacked: float) -> None:
    (mark,) = marks(evaluation(ppo={"over_optimised": hacked}))
    assert not mark.passed
    assert mark.sentence == "reward of ppo rose while the judge fell: over-optimised"
    (mark,) = marks(evaluation(ppo={"over_optimised": 0.0}))
    assert mark.passed
    assert mark.sentence == "reward of ppo and judge do not part"


def test_skipped_steps_of_all_stages_are_added_up() -> None:
    found = marks({"sft": {"skipped_updates": 0}, "ppo": {"final": {"skipped": 1.5}}, "dpo": {"skipped": 3}})
    assert [(mark.name, mark.value, mark.passed) for mark in found] == [("skipped", 5, False)]
    assert found[0].sentence == "skipped optimizer steps: 5 (ppo 2, dpo 3): their loss or gradient was not finite"
    (none,) = marks({"sft": {"skipped_updates": 0}})
    assert none.passed
    assert none.sentence == "skipped optimizer steps: none"


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"evaluate": {}},
        {"evaluate": {"marks": None}},
        {"evaluate": {"marks": {"ppo": 3}}},
        evaluation(ppo={"kl": None, "kl_low": 0.5, "kl_high": 2.0}, reward_model={"accuracy": None, "mark": 1}),
    ],
)
def test_what_was_not_measured_is_not_judged(metrics: dict[str, dict[str, Any]]) -> None:
    assert marks(metrics) == []
