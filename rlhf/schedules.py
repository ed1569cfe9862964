"""Learning-rate schedules: pure functions from the number of finished steps to a factor of the peak rate."""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Factor in (0, 1] of the peak learning rate for the update that follows `step` finished ones."""


def cosine(total_steps: int, *, warmup_fraction: float, final_fraction: float) -> Schedule:
    """Linear warm-up, then half a cosine from 1 down to `final_fraction`.

        f(s) = (s + 1) / w                                              s < w
        f(s) = final + (1 - final) (1 + cos(pi (s - w) / (n - w))) / 2   else

    Args:
        total_steps: n, optimizer steps in the whole run.
        warmup_fraction: share of the steps spent warming up, in [0, 1); w = round(n * fraction).
        final_fraction: factor approached at the end, in [0, 1].

    Raises:
        ValueError: an argument is out of range.
    """
    warmup = _check(total_steps, warmup_fraction, final_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def linear(total_steps: int, *, warmup_fraction: float, final_fraction: float) -> Schedule:
    """Linear warm-up, then a straight line from 1 down to `final_fraction`; arguments as for `cosine`."""
    warmup = _check(total_steps, warmup_fraction, final_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return 1.0 - (1.0 - final_fraction) * progress

    return factor


def constant(total_steps: int, *, warmup_fraction: float, final_fraction: float) -> Schedule:
    """Linear warm-up, then 1; `final_fraction` is accepted so that all schedules are called alike, and must be 1.

    Raises:
        ValueError: `final_fraction` is not 1, or another argument is out of range.
    """
    if final_fraction != 1.0:
        raise ValueError(f"constant: final_fraction is {final_fraction}, wanted 1.0 since the rate never falls")
    warmup = _check(total_steps, warmup_fraction, final_fraction)
    return lambda step: (step + 1) / warmup if step < warmup else 1.0


SCHEDULES = {"cosine": cosine, "linear": linear, "constant": constant}


def _check(total_steps: int, warmup_fraction: float, final_fraction: float) -> int:
    if total_steps < 1:
        raise ValueError(f"schedule: total_steps is {total_steps}, wanted at least 1")
    if not 0.0 <= warmup_fraction < 1.0:
        raise ValueError(f"schedule: warmup_fraction is {warmup_fraction}, wanted a number in [0, 1)")
    if not 0.0 <= final_fraction <= 1.0:
        raise ValueError(f"schedule: final_fraction is {final_fraction}, wanted a number in [0, 1]")
    return round(total_steps * warmup_fraction)
