"""What an applied rule repeats of the rule and of the measurement."""

from tasks.gate_rules import Measured, Rule, RuleSpec, apply_rules

FOUND = Measured(value=0.61, low=0.48, high=0.72, coverage=0.95, p_value=0.1, detail="9 won")


def test_an_applied_rule_repeats_what_was_asked_and_measured() -> None:
    spec = RuleSpec(name="judge_win", direction="below", threshold=0.5, bound="high", soft=True, margin=0.1)
    assert apply_rules([spec], {"judge_win": FOUND}) == (
        Rule(
            name="judge_win", value=0.61, low=0.48, high=0.72, threshold=0.5, ok=False, direction="below", bound="high",
            soft=True, sentence="judge_win 0.61 (0.48 to 0.72): high end 0.72 is not below 0.5", verdict="note",
            coverage=0.95, p_value=0.1, margin=0.1, detail="9 won",
        ),
    )  # fmt: skip


def test_a_rule_about_the_value_names_no_end_of_the_interval() -> None:
    spec = RuleSpec(name="judge_win", direction="above", threshold=0.5, bound="value", soft=False)
    (applied,) = apply_rules([spec], {"judge_win": FOUND})
    assert applied.sentence == "judge_win 0.61 (0.48 to 0.72): 0.61 is above 0.5"
    assert (applied.ok, applied.value, applied.bound, applied.verdict) == (True, 0.61, "value", "holds")


def test_a_rule_about_something_that_was_not_measured_holds_no_number() -> None:
    spec = RuleSpec(name="kl", direction="below", threshold=5.0, bound="value", soft=False)
    (applied,) = apply_rules([spec], {"judge_win": FOUND})
    assert (applied.value, applied.low, applied.high, applied.ok) == (None, None, None, False)
    assert (applied.coverage, applied.p_value, applied.detail) == (None, None, "")
    assert applied.sentence == "kl was not measured, wanted below 5"
