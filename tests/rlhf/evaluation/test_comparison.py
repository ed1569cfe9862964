"""Win rates, averages, the choice of the method and over-optimisation, by hand."""

from typing import Any

import pytest

from rlhf.evaluation.comparison import by_group, duel, over_optimised, policy_metrics, rubric_metrics, select

SETTINGS = {"tolerance": 1e-3, "resamples": 200, "seed": 1}
META = {"action": "refund", "name": "Amara", "order": "201", "item": "desk"}


def row(name: str, judge: float, *, gold: float | None = None, text: str = "x", **fields: Any) -> dict[str, Any]:
    base = {"id": name, "response": text, "ended": True, "tokens": 4, "kl": 1.0, "judge": judge, "reward": 0.0}
    return {**base, "gold": gold, "meta": {}, **fields}


def test_duel_by_hand_matches_prompts_by_id() -> None:
    ours = [row("a", 1.0), row("b", 0.0), row("c", 2.0), row("d", 0.5)]
    theirs = [row("d", 0.5004), row("c", 0.0), row("b", 1.0), row("a", 0.0)]
    # a won, b lost, c won, d within the tolerance: (1 + 0 + 1 + .5) / 4.
    result = duel(ours, theirs, "judge", **SETTINGS)
    assert result is not None
    assert result.mean == pytest.approx(0.625)
    assert 0.0 <= result.low <= result.mean <= result.high <= 1.0
    assert duel(theirs, ours, "judge", **SETTINGS).mean == pytest.approx(0.375)  # type: ignore[union-attr]


def test_duel_needs_scores_and_the_same_prompts() -> None:
    assert duel([row("a", 1.0)], [row("a", 0.0)], "gold", **SETTINGS) is None
    with pytest.raises(ValueError, match="same prompts"):
        duel([row("a", 1.0)], [row("b", 0.0)], "judge", **SETTINGS)


def test_policy_metrics_by_hand() -> None:
    rows = [
        row("a", 1.0, gold=4.0, text="one two three four one two three four", tokens=9, kl=2.0, reward=3.0),
        row("b", 0.0, gold=8.0, ended=False, tokens=3, kl=1.0, reward=1.0),
    ]
    baseline = [row("a", 0.0, gold=5.0), row("b", 1.0, gold=2.0)]
    metrics = policy_metrics(rows, baseline, **SETTINGS)
    assert metrics["judge_win_vs_sft"] == 0.5
    assert metrics["gold_win_vs_sft"] == 0.5
    assert (metrics["judge"], metrics["reward"], metrics["gold"]) == (0.5, 2.0, 6.0)
    assert (metrics["kl"], metrics["length_tokens"], metrics["end_rate"]) == (1.5, 6.0, 0.5)
    # The first text has five word 4-grams, four of them distinct; the second has none: (1/5 + 0) / 2.
    assert metrics["repetition"] == pytest.approx(0.1)
    assert "action_ok" not in metrics


def test_the_baseline_has_no_win_rate() -> None:
    assert not any("win" in name for name in policy_metrics([row("a", 1.0)], None, **SETTINGS))
    with pytest.raises(ValueError, match="no answers"):
        policy_metrics([], None, **SETTINGS)


def test_rubric_metrics_by_hand() -> None:
    rows = [
        row("a", 0.0, text="I booked a full refund. We can have it repaired.", meta=META),  # two remedies: not right
        row("b", 0.0, text="I booked a full refund. Count on 5 days for that. Gibberish here.", meta=META),
        row("c", 0.0, text="I booked a full refund."),  # no facts known
    ]
    metrics = rubric_metrics(rows)
    assert metrics["action_ok"] == 0.5
    assert metrics["sla_ok"] == 0.5
    assert metrics["malformed"] == 0.5


def test_groups_are_compared_on_their_own_prompts() -> None:
    def rows(*judges: float) -> list[dict[str, Any]]:
        shifts = ("wording", "facts", "wording", None)
        return [
            row(str(number), judge, meta={"shift": shift} if shift else {})
            for number, (judge, shift) in enumerate(zip(judges, shifts, strict=True))
        ]

    found = by_group({"sft": rows(0, 0, 0, 0), "ppo": rows(1, -1, 3, 9)}, "shift", baseline="sft", **SETTINGS)
    assert list(found) == ["facts", "wording"]
    assert (found["wording"]["ppo"]["judge"], found["wording"]["ppo"]["judge_win_vs_sft"]) == (2.0, 1.0)
    assert (found["facts"]["ppo"]["judge"], found["facts"]["ppo"]["judge_win_vs_sft"]) == (-1.0, 0.0)
    assert by_group({"sft": rows(0, 0, 0, 0)}, "other", baseline="sft", **SETTINGS) == {}
    assert by_group({}, "shift", baseline="sft", **SETTINGS) == {}


@pytest.mark.parametrize(("tolerance", "chosen"), [(0.0, "ppo"), (0.02, "dpo")])
def test_the_choice_goes_by_win_rate_then_kl(tolerance: float, chosen: str) -> None:
    metrics = {"ppo": {"judge_win_vs_sft": 0.81, "kl": 4.0}, "dpo": {"judge_win_vs_sft": 0.80, "kl": 2.0}}
    assert select(metrics, ["ppo", "dpo"], tolerance=tolerance) == chosen


def test_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="no policy"):
        select({}, [], tolerance=0.0)


@pytest.mark.parametrize(
    ("reward", "judge_high", "gold_high", "alarm"),
    [(2.0, 0.4, 0.9, 1.0), (2.0, 0.9, 0.4, 1.0), (2.0, 0.6, 0.6, 0.0), (-1.0, 0.4, 0.4, 0.0)],
)
def test_reward_that_was_not_deserved(reward: float, judge_high: float, gold_high: float, alarm: float) -> None:
    policy = {"reward": reward, "judge_win_high": judge_high, "gold_win_high": gold_high}
    assert over_optimised(policy, {"reward": 0.0}) == alarm
