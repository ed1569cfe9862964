import pytest

from tasks.gate_rules import Answer, Measured, RuleSpec, apply_rules, measure, passes

HOW = {"tolerance": 0.01, "resamples": 500, "level": 0.95, "seed": 1}


def answers(*scores: float, tokens: int = 10, ended: bool = True, kl: float | None = 2.0) -> list[Answer]:
    return [Answer(judge=score, tokens=tokens, ended=ended, kl=kl) for score in scores]


def test_measurements_by_hand() -> None:
    # Won, lost, tied within the tolerance, won: (1 + 0 + 1/2 + 1) / 4.
    found = measure(answers(1.0, 0.0, 0.505, 2.0, tokens=12), answers(0.5, 0.5, 0.5, 0.5, tokens=8), **HOW)
    assert found["judge_win"].value == pytest.approx(0.625)
    assert found["judge_win"].low <= 0.625 <= found["judge_win"].high
    assert found["length_ratio"].value == pytest.approx(48 / 32)
    assert found["end_rate"] == Measured(value=1.0, low=1.0, high=1.0)
    assert found["kl"].value == pytest.approx(2.0)
    assert "gold_win" not in found


def test_a_clear_win_has_an_interval_above_a_half_and_a_draw_has_not() -> None:
    clear = measure(answers(*[1.0] * 40), answers(*[0.0] * 40), **HOW)["judge_win"]
    draw = measure(answers(*[1.0, 0.0] * 20), answers(*[0.0, 1.0] * 20), **HOW)["judge_win"]
    assert clear.low == 1.0
    assert draw.low < 0.5 < draw.high


def test_unpaired_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 answers against 1"):
        measure(answers(1.0, 2.0), answers(1.0), **HOW)


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
    failing = apply_rules([rule("kl", "below", 5, soft=True)], {"kl": Measured(value=9, low=9, high=9)})
    assert not failing[0].ok
    assert passes(failing)
