"""What the gate measures: two models' answers to the same prompts in, every quantity with its interval out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.evaluation.paired_tests import (
    clopper_pearson,
    paired_difference,
    paired_ratio,
    paired_share_difference,
    paired_wins,
)
from rlhf.evaluation.statistics import Interval, mean_interval
from tasks.gate_rules import CHANGE, Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer to one test prompt, as far as the gate looks at it."""

    judge: float
    """Score by the held-out judge, in its units."""
    tokens: int
    ended: bool
    kl: float | None = None
    """Nats per response from sft; None where it was not measured."""
    gold: float | None = None
    repetition: float | None = None
    """Share of word 4-grams that occurred before in the answer."""
    refused: bool | None = None
    """None where nobody looked."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Of the prompt; slices are made of it."""


OWN: dict[str, Callable[[Answer], float | None]] = {
    "end_rate": lambda answer: float(answer.ended),
    "kl": lambda answer: answer.kl,
    "repetition": lambda answer: answer.repetition,
    "refusals": lambda answer: None if answer.refused is None else float(answer.refused),
    "judge": lambda answer: answer.judge,
    "gold": lambda answer: answer.gold,
}
"""Quantities that an answer has by itself."""
SHARES = ("end_rate", "refusals")
"""Those of them that are 0 or 1."""


def measure(
    challenger: Sequence[Answer],
    opponent: Sequence[Answer],
    *,
    tolerance: float,
    resamples: int,
    level: float,
    seed: int,
    error: float | None = None,
) -> dict[str, Measured]:
    """Measure everything that rules can be about.

    Args:
        challenger: answers, one per prompt.
        opponent: answers to the same prompts in the same order.
        tolerance: judge or gold scores no further apart are a tie, in their unit.
        resamples: of the prompts, behind each interval.
        level: coverage of the intervals, in (0, 1).
        seed: of the resampling.
        error: chance that an end of a win rate's interval may be wrong; by default that of `level`.

    Returns:
        Quantity -> measurement; a quantity without data is absent.

    Raises:
        ValueError: the two are not paired, or there is no prompt at all.
    """
    if len(challenger) != len(opponent) or not challenger:
        raise ValueError(f"gate: {len(challenger)} answers against {len(opponent)}, wanted equally many, at least one")
    tail = (1 - level) / 2
    how: dict[str, Any] = {"seed": seed, "resamples": resamples}
    found: dict[str, Measured] = {}
    for name in ("judge", "gold"):
        both = _column(OWN[name], challenger), _column(OWN[name], opponent)
        if both[0] is not None and both[1] is not None:
            found[f"{name}_win"] = _wins(both[0], both[1], tolerance=tolerance, tail=error or tail)
    for name, read in OWN.items():
        ours, theirs = _column(read, challenger), _column(read, opponent)
        if ours is not None:
            found[name] = _mean(ours, share=name in SHARES, level=level, **how)
        if ours is not None and theirs is not None:
            differ = paired_share_difference if name in SHARES else paired_difference
            found[name + CHANGE] = _measured(differ(ours, theirs, tail=tail, **how), level)
    if any(answer.tokens for answer in opponent):
        tokens = [[answer.tokens for answer in answers] for answers in (challenger, opponent)]
        found["length_ratio"] = _measured(paired_ratio(*tokens, tail=tail, **how), level)
    return found


def _column(read: Callable[[Answer], float | None], answers: Sequence[Answer]) -> list[float] | None:
    """The values of all answers; None where one of them has none."""
    values = [read(answer) for answer in answers]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def _wins(ours: Sequence[float], theirs: Sequence[float], *, tolerance: float, tail: float) -> Measured:
    won = paired_wins(ours, theirs, tolerance=tolerance, tail=tail)
    return Measured(
        value=won.rate,
        low=won.low,
        high=won.high,
        coverage=1 - 2 * tail,
        p_value=won.p_value,
        detail=f"{won.wins} won, {won.losses} lost, {won.ties} tied; low end {won.exact_low:.4f} exact, "
        f"{won.bootstrap_low:.4f} by bootstrap; p {won.p_value:.2g}",
    )


def _mean(values: Sequence[float], *, share: bool, level: float, seed: int, resamples: int) -> Measured:
    if share:
        low, high = clopper_pearson(round(sum(values)), len(values), tail=(1 - level) / 2)
        return Measured(value=sum(values) / len(values), low=low, high=high, coverage=level)
    return _measured(mean_interval(values, seed=seed, resamples=resamples, level=level), level)


def _measured(interval: Interval, level: float) -> Measured:
    return Measured(value=interval.mean, low=interval.low, high=interval.high, coverage=level)
