"""The verdicts at the end of a run: did training converge where the literature says that it should?

The numbers are those of the stages; the bands and thresholds stand beside them in the metrics of `evaluate`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SKIPPING = ("sft", "reward", "judge", "ppo", "dpo")
"""Stages that leave out optimizer steps whose loss or gradient is not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One verdict."""

    name: str
    """What was looked at: `ppo.kl`, `ppo.over_optimised`, `reward_model.accuracy`, `skipped`."""
    value: float | None
    """The number that was looked at."""
    passed: bool
    """Whether it is where it should be."""
    sentence: str
    """The verdict for people."""


def marks(metrics: Mapping[str, Mapping[str, Any]]) -> list[Mark]:
    """Judge a run by its metrics.

    Args:
        metrics: stage name to its metrics; stages that have none are absent or empty. A file from before the block
            `marks` existed gives no verdict about KL, reward and accuracy.
    """
    block = metrics.get("evaluate", {}).get("marks")
    found: list[Mark] = []
    for name, values in (block if isinstance(block, Mapping) else {}).items():
        if isinstance(values, Mapping):
            found += _of_model(name, values)
    skipped = _skipped(metrics)
    return [*found, skipped] if skipped else found


def _of_model(name: str, values: Mapping[str, Any]) -> Iterator[Mark]:
    kl, low, high = (_number(values.get(key)) for key in ("kl", "kl_low", "kl_high"))
    if kl is not None and low is not None and high is not None:
        where = "inside" if low <= kl <= high else "below" if kl < low else "above"
        yield Mark(
            name=f"{name}.kl", value=kl, passed=where == "inside",
            sentence=f"KL of {name} {kl:.2g} nats per response: {where} the band {low:g} to {high:g}",
        )  # fmt: skip
    accuracy, wanted = _number(values.get("accuracy")), _number(values.get("mark"))
    if accuracy is not None and wanted is not None:
        passed = accuracy >= wanted
        said = "reached" if passed else "below"
        yield Mark(
            name=f"{name}.accuracy", value=accuracy, passed=passed,
            sentence=f"preference accuracy of the {name.replace('_', ' ')} {accuracy:.3f}: {said} the mark {wanted:g}",
        )  # fmt: skip
    hacked = values.get("over_optimised")
    if hacked is not None:
        ending = "rose while the judge fell: over-optimised" if hacked else "and judge do not part"
        yield Mark(
            name=f"{name}.over_optimised", value=_number(hacked), passed=not hacked,
            sentence=f"reward of {name} {ending}",
        )  # fmt: skip


def _skipped(metrics: Mapping[str, Mapping[str, Any]]) -> Mark | None:
    """Add up the optimizer steps that were left out; None when no stage counted them."""
    counts = {stage: count for stage in SKIPPING if (count := _skipped_steps(metrics.get(stage, {}))) is not None}
    if not counts:
        return None
    total = sum(counts.values())
    where = ", ".join(f"{stage} {count}" for stage, count in counts.items() if count)
    told = f"{total} ({where}): their loss or gradient was not finite" if total else "none"
    return Mark(name="skipped", value=total, passed=total == 0, sentence=f"skipped optimizer steps: {told}")


def _skipped_steps(metrics: Mapping[str, Any]) -> int | None:
    """Find the count of a stage; that of ppo is the mean of a rising count over its last rows, so rounded up."""
    final = metrics.get("final")
    places = (metrics, final) if isinstance(final, Mapping) else (metrics,)
    for place in places:
        for key in ("skipped_updates", "skipped"):
            if (number := _number(place.get(key))) is not None:
                return math.ceil(number)
    return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
