"""Slices: which there are, when one has collapsed, and that chance seldom says so."""

import numpy as np
import pytest

from tasks.gate_measure import Answer
from tasks.gate_rules import SliceRule
from tasks.gate_slices import measure_slices, rule_of, slices_of

AUTO = SliceRule(fields="auto", floor=0.4, prompts=5)
HOW = {"tolerance": 0.0, "level": 0.95}


def pairs(**wins: tuple[int, int]) -> tuple[list[Answer], list[Answer]]:
    """Answers by kind: so many won of so many."""
    ours, theirs = [], []
    for kind, (won, prompts) in wins.items():
        for number in range(prompts):
            meta = {"kind": kind, "name": f"n{number}", "plus": number % 2 == 0, "days": 1.5, "tags": ["x"]}
            ours.append(Answer(judge=float(number < won), tokens=1, ended=True, meta=meta))
            theirs.append(Answer(judge=0.5, tokens=1, ended=True, meta=meta))
    return ours, theirs


def test_kinds_are_fields_with_a_handful_of_values() -> None:
    ours, _ = pairs(late=(5, 20), lost=(15, 20), rare=(1, 2))
    found = slices_of([answer.meta for answer in ours], AUTO)
    # Names have 20 values, days and tags are no kinds, two prompts are too few.
    assert {key: len(rows) for key, rows in found.items()} == {
        ("kind", "late"): 20, ("kind", "lost"): 20, ("plus", "False"): 21, ("plus", "True"): 21,
    }  # fmt: skip
    named = SliceRule(fields=("kind",), floor=0.4, prompts=2)
    kinds = {("kind", kind) for kind in ("late", "lost", "rare")}
    assert set(slices_of([answer.meta for answer in ours], named)) == kinds
    assert slices_of([{"kind": "one"}] * 40, AUTO) == {}  # all prompts are no slice


def test_a_collapse_that_the_average_hides_is_found() -> None:
    ours, theirs = pairs(late=(2, 40), lost=(150, 160))
    found = measure_slices(ours, theirs, AUTO, **HOW)
    late = next(one for one in found if one.value == "late")
    assert (late.rate, late.prompts, late.ok) == (0.05, 40, False)
    assert late.high < 0.4
    rule = rule_of(found, AUTO, 0.95)
    assert rule is not None
    assert (rule.ok, rule.verdict, rule.soft, rule.threshold) == (False, "fails", False, 0.4)
    assert rule.sentence.startswith("1 of 4 slices collapsed below a win rate of 0.4: kind late: 0.05 (")


def test_a_weak_slice_is_no_collapse_and_a_floor_of_zero_only_shows() -> None:
    ours, theirs = pairs(late=(16, 40), lost=(150, 160))
    rule = rule_of(measure_slices(ours, theirs, AUTO, **HOW), AUTO, 0.95)
    assert rule is not None
    assert (rule.ok, rule.verdict) == (True, "holds")
    assert "0 of 4 slices collapsed" in rule.sentence
    shown = SliceRule(fields="auto", floor=0.0, prompts=5)
    rule = rule_of(measure_slices(*pairs(late=(0, 40), lost=(150, 160)), shown, **HOW), shown, 0.95)
    assert rule is not None
    assert (rule.ok, rule.soft) == (True, True)


def test_without_slices_there_is_no_rule() -> None:
    ours = [Answer(judge=1.0, tokens=1, ended=True)] * 30
    assert measure_slices(ours, ours, AUTO, **HOW) == ()
    assert rule_of((), AUTO, 0.95) is None


def test_the_intervals_widen_with_the_number_of_slices() -> None:
    ours, theirs = pairs(late=(10, 40), lost=(30, 40))
    by_all = {one.value: one for one in measure_slices(ours, theirs, AUTO, **HOW)}
    alone = measure_slices(ours, theirs, SliceRule(fields=("kind",), floor=0.4, prompts=5), **HOW)
    assert all(by_all[one.value].low < one.low and by_all[one.value].high > one.high for one in alone)


@pytest.mark.parametrize("kinds", [5])
def test_among_slices_at_the_floor_one_is_seldom_called_collapsed(kinds: int) -> None:
    # Every slice wins exactly 0.4: the chance that any is called collapsed is at most (1 - 0.95) / 2.
    rng = np.random.default_rng(2)
    rule = SliceRule(fields=("kind",), floor=0.4, prompts=5)
    called = 0
    for _ in range(400):
        wins = rng.binomial(30, 0.4, size=kinds)
        ours, theirs = pairs(**{f"k{number}": (int(won), 30) for number, won in enumerate(wins)})
        called += any(not one.ok for one in measure_slices(ours, theirs, rule, **HOW))
    assert called <= 20  # 10 at most to be expected; more than 20 has a chance of 0.2%
