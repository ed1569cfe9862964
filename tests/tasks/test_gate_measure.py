"""What is measured of two models' answers, and which quantities only some answers have."""

from dataclasses import replace

import pytest

from tasks.gate_measure import Answer, measure
from tasks.gate_rules import QUANTITIES

HOW = {"tolerance": 0.01, "resamples": 500, "level": 0.95, "seed": 1}


def answers(*scores: float, tokens: int = 10, ended: bool = True, kl: float | None = 2.0) -> list[Answer]:
    return [Answer(judge=score, tokens=tokens, ended=ended, kl=kl) for score in scores]


def graded(*gold: float | None) -> list[Answer]:
    return [replace(answer, gold=value) for answer, value in zip(answers(*[0.0] * len(gold)), gold, strict=True)]


def test_measurements_by_hand() -> None:
    # Won, lost, tied within the tolerance, won: (1 + 0 + 1/2 + 1) / 4.
    found = measure(answers(1.0, 0.0, 0.505, 2.0, tokens=12), answers(0.5, 0.5, 0.5, 0.5, tokens=8), **HOW)
    win = found["judge_win"]
    assert win.value == pytest.approx(0.625)
    assert win.low <= 0.625 <= win.high
    assert win.p_value == pytest.approx(0.5)  # two or three wins of three
    assert "2 won, 1 lost, 1 tied" in win.detail
    assert found["length_ratio"].value == pytest.approx(48 / 32)
    assert found["end_rate"].value == 1.0
    assert found["end_rate"].low == pytest.approx(0.025 ** (1 / 4))  # four of four, exactly
    assert found["kl"].value == pytest.approx(2.0)
    assert found["judge_change"].value == pytest.approx((3.505 - 2.0) / 4)
    assert set(found) <= set(QUANTITIES)
    assert not {"gold_win", "gold", "refusals", "repetition"} & set(found)


def test_a_clear_win_has_an_interval_above_a_half_and_a_draw_has_not() -> None:
    clear = measure(answers(*[1.0] * 40), answers(*[0.0] * 40), **HOW)["judge_win"]
    draw = measure(answers(*[1.0, 0.0] * 20), answers(*[0.0, 1.0] * 20), **HOW)["judge_win"]
    assert clear.low == pytest.approx(0.025 ** (1 / 40))
    assert draw.low < 0.5 < draw.high


def test_the_error_of_a_look_widens_the_win_rates_and_nothing_else() -> None:
    ours, theirs = answers(*[1.0, 0.0, 1.0] * 20), answers(*[0.0, 1.0, 0.0] * 20)
    first, later = measure(ours, theirs, **HOW), measure(ours, theirs, error=0.001, **HOW)
    assert later["judge_win"].low < first["judge_win"].low
    assert later["judge_win"].coverage == pytest.approx(0.998)
    assert later["judge_change"] == first["judge_change"]


def test_unpaired_answers_and_none_are_refused() -> None:
    with pytest.raises(ValueError, match="2 answers against 1"):
        measure(answers(1.0, 2.0), answers(1.0), **HOW)
    with pytest.raises(ValueError, match="0 answers against 0"):
        measure([], [], **HOW)


def test_gold_scores_are_compared_pair_by_pair() -> None:
    # Won, lost, tied within the tolerance, won. The judge sees four draws.
    found = measure(graded(1.0, 0.0, 0.505, 2.0), graded(0.5, 0.5, 0.5, 0.5), **HOW)
    assert found["gold_win"].value == pytest.approx(0.625)
    assert found["gold_win"].low < 0.625 < found["gold_win"].high
    assert found["judge_win"].value == 0.5
    wide = measure(graded(1.0, 0.0, 0.505, 2.0), graded(0.5, 0.5, 0.5, 0.5), **{**HOW, "level": 0.5})
    assert wide["gold_win"].high < found["gold_win"].high


@pytest.mark.parametrize("side", ["ours", "theirs", "both"])
def test_gold_is_measured_only_where_every_answer_of_both_has_it(side: str) -> None:
    some, every = graded(1.0, None), graded(1.0, 0.0)
    found = measure(some if side != "theirs" else every, some if side != "ours" else every, **HOW)
    assert "gold_win" not in found
    assert "gold_change" not in found
    assert ("gold" in found) == (side == "theirs")


def test_divergence_is_measured_only_where_every_answer_of_the_challenger_has_it() -> None:
    ours, theirs = answers(1.0, 1.0), answers(1.0, 1.0, kl=None)
    found = measure(ours, theirs, **HOW)
    assert (found["kl"].value, found["kl"].low, found["kl"].high) == (2.0, 2.0, 2.0)
    assert "kl_change" not in found
    ours[1] = replace(ours[1], kl=None)
    assert "kl" not in measure(ours, theirs, **HOW)


def test_refusals_and_repetition_are_compared_where_they_are_known() -> None:
    ours = [replace(answer, refused=True, repetition=0.5) for answer in answers(*[1.0] * 10)]
    theirs = [replace(answer, refused=False, repetition=0.25) for answer in answers(*[1.0] * 10)]
    found = measure(ours, theirs, **HOW)
    assert (found["refusals"].value, found["refusals_change"].value) == (1.0, 1.0)
    assert found["refusals_change"].low == pytest.approx(0.0125 ** (1 / 10) - (1 - 0.0125 ** (1 / 10)))
    assert found["repetition_change"].value == 0.25


def test_the_length_ratio_needs_a_token() -> None:
    found = measure(answers(0.0, 0.0, tokens=12), answers(0.0, 0.0, tokens=8), **HOW)["length_ratio"]
    assert (found.value, found.low, found.high) == (1.5, 1.5, 1.5)
    assert measure(answers(0.0, tokens=3), answers(0.0, tokens=1), **HOW)["length_ratio"].value == 3.0
    assert "length_ratio" not in measure(answers(0.0), answers(0.0, tokens=0), **HOW)
