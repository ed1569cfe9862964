"""Slices: how a challenger does on each kind of prompt, and whether it collapsed on one that the average hides."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.evaluation.paired_tests import clopper_pearson
from rlhf.evaluation.statistics import win_points
from tasks.gate_measure import Answer
from tasks.gate_rules import Rule, Slice, SliceRule

MOST_VALUES = 12
"""A field with more values than this is a name or a number, no kind of prompt."""


def measure_slices(
    challenger: Sequence[Answer], opponent: Sequence[Answer], rule: SliceRule, *, tolerance: float, level: float
) -> tuple[Slice, ...]:
    """Win rate by the judge on each slice, with intervals that hold for all slices at once.

    A slice has collapsed when its whole interval lies below the floor. With S slices each end may err with
    (1 - level) / (2 S) (Bonferroni), so among models that are nowhere below the floor the chance that any slice is
    called collapsed is at most (1 - level) / 2, however the slices overlap. Holm's procedure would find the same first
    collapse and has no interval to show.

    Source: Dunn 1961 (Bonferroni intervals), https://doi.org/10.1080/01621459.1961.10482090

    Args:
        challenger: answers, one per prompt.
        opponent: answers to the same prompts in the same order.
        rule: which slices, and the floor.
        tolerance: judge scores no further apart are a tie.
        level: coverage of all intervals together, in (0, 1).
    """
    metas = [answer.meta for answer in challenger]
    groups = slices_of(metas, rule)
    points = win_points([answer.judge for answer in challenger], [answer.judge for answer in opponent],
                        tolerance=tolerance)  # fmt: skip
    found = []
    for (field, value), rows in groups.items():
        own = points[rows]
        wins, losses = int((own == 1.0).sum()), int((own == 0.0).sum())
        ends = clopper_pearson(wins, wins + losses, tail=(1 - level) / 2 / len(groups))
        low, high = (0.5 + (end - 0.5) * (wins + losses) / len(rows) for end in ends)
        found.append(
            Slice(
                field=field, value=value, prompts=len(rows), rate=float(own.mean()), low=low, high=high,
                ok=high >= rule.floor,
            )
        )  # fmt: skip
    return tuple(found)


def slices_of(metas: Sequence[Mapping[str, Any]], rule: SliceRule) -> dict[tuple[str, str], list[int]]:
    """Rows of each slice that is large enough, by field and value, in alphabetical order; a slice of all is none."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, meta in enumerate(metas):
        for field, value in meta.items():
            if isinstance(value, str | bool | int) and (rule.fields == "auto" or field in rule.fields):
                groups.setdefault((field, str(value)), []).append(row)
    values = Counter(field for field, _ in groups)
    return {
        key: groups[key]
        for key in sorted(groups)
        if rule.prompts <= len(groups[key]) < len(metas) and (rule.fields != "auto" or values[key[0]] <= MOST_VALUES)
    }


def rule_of(slices: Sequence[Slice], rule: SliceRule, level: float) -> Rule | None:
    """Sum the slices up in one rule, about the one whose interval ends lowest; None where there is no slice."""
    if not slices:
        return None
    worst = min(slices, key=lambda one: (one.high, one.rate))
    lost = [one for one in slices if not one.ok]
    shown = "; ".join(
        f"{one.field} {one.value}: {one.rate:.3g} ({one.low:.3g} to {one.high:.3g}) of {one.prompts} prompts"
        for one in (lost or [worst])
    )
    said = f"{len(lost)} of {len(slices)} slices collapsed below a win rate of {rule.floor:g}"
    return Rule(
        name="slices",
        value=worst.rate,
        low=worst.low,
        high=worst.high,
        threshold=rule.floor,
        ok=not lost,
        direction="above",
        bound="high",
        soft=rule.floor == 0,
        sentence=f"{said}: {shown}" if lost else f"{said}; the nearest to it is {shown}",
        verdict="fails" if lost else "holds",
        coverage=1 - (1 - level) / len(slices),
        detail=f"{len(slices)} slices; each interval is wide enough for all of them to hold at once",
    )
