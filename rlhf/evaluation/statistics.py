"""How sure we are: intervals, tests and agreement, for comparisons on the same prompts."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLE_ELEMENTS = 2**22


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    mean: float
    low: float
    high: float
    n: int
    """Number of independent units (prompts) that it rests on."""


def mean_interval(values: ArrayLike, *, seed: int, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Mean with a percentile bootstrap interval over the values.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Args:
        values: one for each independent unit. [n]
        seed: of the resampling; equal seeds give equal intervals.
        resamples: number of bootstrap samples.
        level: of confidence, in (0, 1).

    Returns:
        Mean and interval.

    Raises:
        ValueError: there is no value, one is not finite, or the level lies outside (0, 1).
    """
    data = _finite_vector("values", values)
    _require_level(level)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    block = max(1, RESAMPLE_ELEMENTS // len(data))
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        means[start:stop] = data[generator.integers(0, len(data), size=(stop - start, len(data)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(data.mean()), float(low), float(high), len(data))


def paired_win_rate(
    a: ArrayLike, b: ArrayLike, *, seed: int, tolerance: float = 0.0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Share of prompts on which `a` scores above `b`, ties counting half, with a bootstrap interval over prompts.

    Args:
        a: scores of the first policy, one for each prompt. [n]
        b: scores of the second policy on the same prompts, in the same order. [n]
        seed: of the resampling.
        tolerance: scores no further apart than this are a tie, in score units, at least 0.
        resamples: number of bootstrap samples.
        level: of confidence, in (0, 1).

    Returns:
        Win rate of `a` and interval, in [0, 1].

    Raises:
        ValueError: lengths differ, there is no score, or one is not finite.
    """
    return mean_interval(win_points(a, b, tolerance=tolerance), seed=seed, resamples=resamples, level=level)


def win_points(a: ArrayLike, b: ArrayLike, *, tolerance: float = 0.0) -> NDArray[np.float64]:
    """Result of each comparison: 1 where `a` wins, 0 where `b` wins, 0.5 for a tie.

    Args:
        a: scores of the first policy. [n]
        b: scores of the second policy. [n]
        tolerance: scores no further apart than this are a tie, in score units, at least 0.

    Returns:
        Points of `a`. [n]

    Raises:
        ValueError: lengths differ, there is no score, one is not finite, or the tolerance is negative.
    """
    first, second = _finite_vector("a", a), _finite_vector("b", b)
    if first.shape != second.shape:
        raise ValueError(f"b has shape {second.shape} but a has {first.shape}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance} but must be at least 0")
    difference = first - second
    return np.where(np.abs(difference) <= tolerance, 0.5, (difference > 0).astype(np.float64))


def wilson_interval(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Interval of a proportion; stays inside [0, 1] and is honest at 0 and at n successes.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953

    Args:
        successes: number of successes, in [0, n]; a tie may count half.
        n: number of trials, at least 1.
        level: of confidence, in (0, 1).

    Returns:
        The plain proportion, and an interval around it that need not be symmetric.

    Raises:
        ValueError: there is no trial, or successes lie outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} and n is {n}, but 0 <= successes <= n and n >= 1 must hold")
    _require_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not push the exact ends 0 and 1 inside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, n)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided sign test; ties are left out before the call.

        p = min(1, 2 P(X <= min(wins, losses))),    X ~ Binomial(wins + losses, 1/2)

    Args:
        wins: comparisons won.
        losses: comparisons lost.

    Returns:
        Probability of a result at least as lopsided if both were equally good; 1 when nothing was decided.

    Raises:
        ValueError: a count is negative.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"wins is {wins} and losses is {losses}, but neither may be negative")
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    # Whole numbers until the end: 2 ** n does not fit into a float for n > 1023.
    return 1.0 if 2 * tail >= 2**n else float(2 * tail / 2**n)


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two judges beyond what their habits would give by chance.

        kappa = (p_observed - p_chance) / (1 - p_chance)

    Source: Cohen 1960, https://doi.org/10.1177/001316446002000104

    Args:
        a: labels by the first judge.
        b: labels by the second judge of the same items, in the same order.

    Returns:
        1 for full agreement, 0 for chance, negative below chance; 1 when both always say the same one thing.

    Raises:
        ValueError: lengths differ, or there is no label.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a has {len(a)} labels and b has {len(b)}, but both need the same number, at least one")
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    counts_a, counts_b = Counter(a), Counter(b)
    chance = sum(counts_a[label] * counts_b[label] for label in counts_a) / (n * n)
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def _finite_vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0:
        raise ValueError(f"{name} has shape {data.shape} but must be one row of at least one number")
    if not np.isfinite(data).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(data)).sum())} numbers that are not finite")
    return data


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level} but must lie in (0, 1)")
