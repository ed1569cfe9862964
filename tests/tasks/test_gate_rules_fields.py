"""What a verdict repeats of rules and measurements, and quantities that only some answers have."""

from dataclasses import replace

import pytest

from tasks.gate_rules import Answer, Measured, Rule, RuleSpec, apply_rules, measure

HOW = {"tolerance": 0.01, "resamples": 500, "level": 0.95, "seed": 1}
FOUND = Measured(value=0.61, low=0.48, high=0.72)


def answers(*gold: float | None, tokens: int = 10, kl: float | None = 2.0) -> list[Answer]:
    return [Answer(judge=0.0, tokens=tokens, ended=True, kl=kl, gold=value) for value in gold]


def test_an_applied_rule_repeats_what_was_asked_and_measured() -> None:
    spec = RuleSpec(name="judge_win", direction="below", threshold=0.5, bound="high", soft=True)
    assert apply_rules([spec], {"judge_win": FOUND}) == (
        Rule(
            name="judge_win", value=0.61, low=0.48, high=0.72, threshold=0.5, ok=False, direction="below", bound="high",
            soft=True, sentence="judge_win 0.61 (0.48 to 0.72): high end 0.72 is not below 0.5",
        ),
    )  # fmt: skip


def test_a_rule_about_the_value_names_no_end_of_the_interval() -> None:
    spec = RuleSpec(name="judge_win", direction="above", threshold=0.5, bound="value", soft=False)
    (applied,) = apply_rules([spec], {"judge_win": FOUND})
    assert applied.sentence == "judge_win 0.61 (0.48 to 0.72): 0.61 is above 0.5"
    assert (applied.ok, applied.value, applied.bound) == (True, 0.61, "value")


def test_a_rule_about_something_that_was_not_measured_holds_no_number() -> None:
    spec = RuleSpec(name="kl", direction="below", threshold=5.0, bound="value", soft=False)
    (applied,) = apply_rules([spec], {"judge_win": FOUND})
    assert (applied.value, applied.low, applied.high, applied.ok) == (None, None, None, False)
    assert applied.sentence == "kl was not measured, wanted below 5"


def test_gold_scores_are_compared_pair_by_pair() -> None:
    # Won, lost, tied within the tolerance, won: (1 + 0 + 1/2 + 1) / 4. The judge sees four draws.
    found = measure(answers(1.0, 0.0, 0.505, 2.0), answers(0.5, 0.5, 0.5, 0.5), **HOW)
    assert found["gold_win"].value == pytest.approx(0.625)
    assert found["gold_win"].low < 0.625 < found["gold_win"].high
    assert found["judge_win"].value == 0.5
    # With resamples, level or seed left to the defaults the interval would differ.
    wide = measure(answers(1.0, 0.0, 0.505, 2.0), answers(0.5, 0.5, 0.5, 0.5), **{**HOW, "level": 0.5})
    assert wide["gold_win"].high < found["gold_win"].high


@pytest.mark.parametrize("side", ["ours", "theirs", "both"])
def test_gold_is_measured_only_where_every_answer_of_both_has_it(side: str) -> None:
    some, every = answers(1.0, None), answers(1.0, 0.0)
    found = measure(some if side != "theirs" else every, some if side != "ours" else every, **HOW)
    assert "gold_win" not in found


def test_divergence_is_measured_only_where_every_answer_of_the_challenger_has_it() -> None:
    ours, theirs = answers(1.0, 1.0), answers(1.0, 1.0, kl=None)
    assert measure(ours, theirs, **HOW)["kl"] == Measured(value=2.0, low=2.0, high=2.0)
    ours[1] = replace(ours[1], kl=None)
    assert "kl" not in measure(ours, theirs, **HOW)


def test_the_length_ratio_has_no_interval_and_needs_a_token() -> None:
    found = measure(answers(None, None, tokens=12), answers(None, None, tokens=8), **HOW)
    assert found["length_ratio"] == Measured(value=1.5, low=1.5, high=1.5)
    assert measure(answers(None, tokens=3), answers(None, tokens=1), **HOW)["length_ratio"].value == 3.0
    assert "length_ratio" not in measure(answers(None), answers(None, tokens=0), **HOW)


def test_no_answers_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="0 answers against 0"):
        measure([], [], **HOW)
