"""The gate's arithmetic: measurements of two models on the same prompts in, a verdict with its reasons out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Bound = Literal["value", "low", "high"]

QUANTITIES: dict[str, tuple[float, float]] = {
    "judge_win": (0.0, 1.0),
    "gold_win": (0.0, 1.0),
    "end_rate": (0.0, 1.0),
    "length_ratio": (0.0, 100.0),
    "kl": (0.0, 1000.0),
}
"""What a rule may be about, and between what its threshold makes sense."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleSpec:
    """One line of the gate in mlflow/registry.yaml."""

    name: str
    direction: Literal["above", "below"]
    threshold: float
    bound: Bound
    soft: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A number with its interval, in the unit of the quantity; low = high = value where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule applied: what was measured against what was asked."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float
    ok: bool
    direction: Literal["above", "below"]
    bound: Bound
    soft: bool
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the gate says, and about whom."""

    promote: bool
    reasons: tuple[Rule, ...]
    sentence: str
    challenger: str
    """Version number of the challenger."""
    champion: str | None
    """Version number of the champion it was judged against, None when there was none."""
    opponent: str
    """Who the challenger was compared with, in words."""
    prompts: int
    """Number of paired test prompts."""
    mode: str


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


def measure(
    challenger: Sequence[Answer],
    opponent: Sequence[Answer],
    *,
    tolerance: float,
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Measured]:
    """Measure everything that rules can be about.

    Args:
        challenger: answers, one per prompt.
        opponent: answers to the same prompts in the same order.
        tolerance: judge or gold scores no further apart are a tie, in their unit.
        resamples: of the prompts, behind each interval.
        level: coverage of the intervals, in (0, 1).
        seed: of the resampling.

    Returns:
        Quantity -> measurement; a quantity without data is absent.

    Raises:
        ValueError: the two are not paired, or there is no prompt at all.
    """
    from rlhf.evaluation.statistics import Interval, mean_interval, paired_win_rate

    if len(challenger) != len(opponent) or not challenger:
        raise ValueError(f"gate: {len(challenger)} answers against {len(opponent)}, wanted equally many, at least one")
    ours, theirs = list(challenger), list(opponent)
    how: dict[str, Any] = {"seed": seed, "resamples": resamples, "level": level}

    def measured(interval: Interval) -> Measured:
        return Measured(value=interval.mean, low=interval.low, high=interval.high)

    judged = paired_win_rate([a.judge for a in ours], [b.judge for b in theirs], tolerance=tolerance, **how)
    found = {
        "judge_win": measured(judged),
        "end_rate": measured(mean_interval([float(a.ended) for a in ours], **how)),
    }
    gold = [(a.gold, b.gold) for a, b in zip(ours, theirs, strict=True) if a.gold is not None and b.gold is not None]
    if len(gold) == len(ours):
        won = paired_win_rate([a for a, _ in gold], [b for _, b in gold], tolerance=tolerance, **how)
        found["gold_win"] = measured(won)
    kl = [a.kl for a in ours if a.kl is not None]
    if len(kl) == len(ours):
        found["kl"] = measured(mean_interval(kl, **how))
    total = sum(b.tokens for b in theirs)
    if total:
        ratio = sum(a.tokens for a in ours) / total
        found["length_ratio"] = Measured(value=ratio, low=ratio, high=ratio)
    return found


def apply_rules(specs: Sequence[RuleSpec], measured: dict[str, Measured]) -> tuple[Rule, ...]:
    """Apply each rule; one about something that was not measured fails, unless it is soft."""
    return tuple(_apply(spec, measured.get(spec.name)) for spec in specs)


def _apply(spec: RuleSpec, found: Measured | None) -> Rule:
    wanted = f"{spec.direction} {spec.threshold:g}"
    if found is None:
        ok, said = spec.soft, f"{spec.name} was not measured, wanted {wanted}"
    else:
        end = float(getattr(found, spec.bound))
        ok = end > spec.threshold if spec.direction == "above" else end < spec.threshold
        which = "" if spec.bound == "value" else f"{spec.bound} end "
        said = (
            f"{spec.name} {found.value:.3g} ({found.low:.3g} to {found.high:.3g}): {which}{end:.3g} "
            f"is {'' if ok else 'not '}{wanted}"
        )
    return Rule(
        name=spec.name,
        value=found.value if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        threshold=spec.threshold,
        ok=ok,
        direction=spec.direction,
        bound=spec.bound,
        soft=spec.soft,
        sentence=said,
    )


def passes(rules: Sequence[Rule]) -> bool:
    """Tell whether every rule that is not soft holds."""
    return all(rule.ok or rule.soft for rule in rules)
