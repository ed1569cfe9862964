import pytest

from tasks.gate_rules import Measured, RuleSpec, apply_rules, not_worse_by, outcome_of, passes


def rule(name: str, direction: str, threshold: float, *, bound: str = "value", soft: bool = False) -> RuleSpec:
    return RuleSpec(name=name, direction=direction, threshold=threshold, bound=bound, soft=soft)  # type: ignore[arg-type]


def test_the_end_of_the_interval_that_a_rule_names_decides() -> None:
    measured = {"judge_win": Measured(value=0.6, low=0.48, high=0.72)}
    by_value, by_low = apply_rules(
        [rule("judge_win", "above", 0.5), rule("judge_win", "above", 0.5, bound="low")], measured
    )
    assert by_value.ok
    assert not by_low.ok
    assert by_low.sentence == "judge_win 0.6 (0.48 to 0.72): low end 0.48 is not above 0.5"
    assert not passes([by_value, by_low])


def test_a_threshold_that_is_just_met_is_not_passed() -> None:
    even = {"end_rate": Measured(value=0.9, low=0.9, high=0.9)}
    assert not apply_rules([rule("end_rate", "above", 0.9)], even)[0].ok
    assert not apply_rules([rule("end_rate", "below", 0.9)], even)[0].ok


def test_soft_rules_never_block_and_hard_ones_need_a_measurement() -> None:
    soft, hard = apply_rules([rule("kl", "below", 5, soft=True), rule("kl", "below", 5)], {})
    assert passes([soft])
    assert not passes([hard])
    assert (soft.verdict, hard.verdict) == ("holds", "fails")
    failing = apply_rules([rule("kl", "below", 5, soft=True)], {"kl": Measured(value=9, low=9, high=9)})
    assert not failing[0].ok
    assert failing[0].verdict == "note"
    assert passes(failing)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "outcome"),
    [
        (0.51, 0.60, "holds", "promote"),
        (0.46, 0.58, "undecided", "undecided"),  # may be worse, may be better by more than 0.05
        (0.44, 0.54, "fails", "refuse"),  # may be better, but by nothing of interest
        (0.40, 0.49, "fails", "refuse"),  # is worse
    ],
)
def test_too_few_prompts_are_told_from_being_worse_and_from_being_no_better(
    low: float, high: float, verdict: str, outcome: str
) -> None:
    measured = {"judge_win": Measured(value=(low + high) / 2, low=low, high=high)}
    found = apply_rules([rule("judge_win", "above", 0.5, bound="low")], measured, smallest_effect=0.05)
    assert (found[0].verdict, outcome_of(found)) == (verdict, outcome)
    assert ("a gain of 0.05 is ruled out" in found[0].sentence) == (high == 0.54)


def test_a_rule_that_surely_fails_refuses_though_another_is_undecided() -> None:
    measured = {
        "judge_win": Measured(value=0.52, low=0.45, high=0.59),
        "end_rate": Measured(value=0.5, low=0.4, high=0.6),
    }
    specs = [rule("judge_win", "above", 0.5, bound="low"), rule("end_rate", "above", 0.9)]
    assert outcome_of(apply_rules(specs, measured)) == "refuse"
    assert outcome_of(apply_rules(specs[:1], measured)) == "undecided"


def test_the_value_alone_is_never_undecided() -> None:
    found = apply_rules([rule("end_rate", "above", 0.9)], {"end_rate": Measured(value=0.89, low=0.8, high=0.95)})
    assert found[0].verdict == "fails"


@pytest.mark.parametrize(
    ("name", "margin", "wanted"),
    [
        ("end_rate", 0.02, ("end_rate_change", "above", -0.02, "low")),
        ("kl", 1.5, ("kl_change", "below", 1.5, "high")),
        ("repetition", 0.01, ("repetition_change", "below", 0.01, "high")),
        ("gold_win", 0.1, ("gold_win", "above", 0.4, "low")),
        ("length_ratio", 0.2, ("length_ratio", "below", 1.2, "high")),
    ],
)
def test_a_margin_is_about_the_worse_end_of_the_change(
    name: str, margin: float, wanted: tuple[str, str, float, str]
) -> None:
    spec = not_worse_by(name, margin, soft=False)
    assert (spec.name, spec.direction, spec.threshold, spec.bound) == wanted
    assert spec.margin == margin


def test_a_margin_is_shown_missed_or_open() -> None:
    spec = not_worse_by("end_rate", 0.02, soft=False)
    shown, missed, still_open = (
        apply_rules([spec], {"end_rate_change": Measured(value=value, low=low, high=high)})[0].verdict
        for value, low, high in ((-0.005, -0.015, 0.005), (-0.05, -0.08, -0.03), (-0.005, -0.04, 0.03))
    )
    assert (shown, missed, still_open) == ("holds", "fails", "undecided")
    # A margin on a win rate asks for nothing better, so a gain that is ruled out does not settle it.
    spec = not_worse_by("gold_win", 0.1, soft=False)
    found = apply_rules([spec], {"gold_win": Measured(value=0.41, low=0.39, high=0.43)}, smallest_effect=0.05)
    assert found[0].verdict == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.2, 1.4, "holds"), (1.2, 1.6, "undecided"), (1.5, 1.7, "fails"), (1.6, 1.7, "fails")],
)
def test_a_rule_below_is_undecided_while_its_low_end_is_below(low: float, high: float, verdict: str) -> None:
    measured = {"length_ratio": Measured(value=(low + high) / 2, low=low, high=high)}
    assert apply_rules([rule("length_ratio", "below", 1.5, bound="high")], measured)[0].verdict == verdict


def test_an_interval_that_only_touches_the_threshold_leaves_nothing_open() -> None:
    touching = {"judge_win": Measured(value=0.5, low=0.5, high=0.5)}
    assert apply_rules([rule("judge_win", "above", 0.5, bound="low")], touching)[0].verdict == "fails"
    # A gain of exactly 0.05 at the very end counts as ruled out.
    even = {"judge_win": Measured(value=0.5, low=0.45, high=0.55)}
    (found,) = apply_rules([rule("judge_win", "above", 0.5, bound="low")], even, smallest_effect=0.05)
    assert found.sentence == (
        "judge_win 0.5 (0.45 to 0.55): low end 0.45 is not above 0.5, and a gain of 0.05 is ruled out"
    )


def test_a_loss_that_is_asked_for_is_ruled_out_in_the_same_way() -> None:
    spec = rule("judge_win", "below", 0.5, bound="high")
    found = [
        apply_rules([spec], {"judge_win": Measured(value=0.5, low=low, high=0.54)}, smallest_effect=0.05)[0].verdict
        for low in (0.44, 0.46)
    ]
    assert found == ["undecided", "fails"]


def test_a_soft_margin_stays_soft() -> None:
    assert [not_worse_by("kl", 1, soft=soft).soft for soft in (True, False)] == [True, False]
