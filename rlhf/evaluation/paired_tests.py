"""Two models on the same prompts: exact and resampled intervals of wins, differences and ratios.

All intervals here are given by `tail`, the chance of error at one end. A gate asks about one end only, so an interval
with 2.5% at each end (the usual "95%") is wrong about that end in 2.5% of all cases.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf.evaluation.statistics import RESAMPLE_ELEMENTS, Interval, mean_interval, win_points

HALVINGS = 40
"""Of the bracket around an exact end: 1e-12."""


class WinInterval(NamedTuple):
    """A win rate, ties counting half, with what bounds it."""

    rate: float
    low: float
    """The lower of the exact and the bootstrap end, so a threshold below it is cleared by both."""
    high: float
    p_value: float
    """Exact, one-sided: chance of at least so many wins if a decided comparison were won half the time."""
    exact_low: float
    bootstrap_low: float
    wins: int
    losses: int
    ties: int


def upper_tail(successes: int, n: int, share: float) -> float:
    """P(X >= successes), X ~ Binomial(n, share), summed term by term.

    Args:
        successes: any whole number.
        n: trials, at least 0.
        share: chance of success, in [0, 1].
    """
    if successes <= 0:
        return 1.0
    if successes > n or share <= 0.0:
        return 0.0
    if share >= 1.0:
        return 1.0
    return _tail(*_terms(successes, n), n, share)


@lru_cache(maxsize=65536)
def clopper_pearson(successes: int, n: int, *, tail: float) -> tuple[float, float]:
    """Exact interval of a proportion: it covers the truth at each end with at least 1 - tail, whatever the truth is.

    Source: Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404

    Args:
        successes: in [0, n].
        n: trials; with 0 the interval is [0, 1].
        tail: chance of error at each end, in (0, 0.5).

    Returns:
        Low and high end.

    Raises:
        ValueError: successes or tail out of range.
    """
    _require_tail(tail)
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} and n is {n}, but 0 <= successes <= n must hold")
    low = _low_end(successes, n, tail) if successes else 0.0
    high = 1.0 - _low_end(n - successes, n, tail) if successes < n else 1.0
    return low, high


@lru_cache(maxsize=65536)
def win_interval(wins: int, losses: int, ties: int, *, tail: float) -> WinInterval:
    """Win rate with ties half, bounded by the exact test and by the bootstrap, whichever is wider.

    The exact part is the sign test: given how many comparisons were decided, equal models win each with chance 1/2, so
    its error is at most `tail` for any number of prompts. (The mid-p version would be a little more powerful and may
    exceed it.) The ends in terms of the win rate take the share of ties as it was observed. The bootstrap draws
    prompts anew, ties included; for few prompts or lopsided results its ends are too narrow, hence both.

    Source: Dixon and Mood 1946 (sign test), https://doi.org/10.1080/01621459.1946.10501898

    Args:
        wins: comparisons won.
        losses: comparisons lost.
        ties: neither.
        tail: chance of error at each end, in (0, 0.5).

    Raises:
        ValueError: a count is negative, all are 0, or the tail is out of range.
    """
    _require_tail(tail)
    n, decided = wins + losses + ties, wins + losses
    if min(wins, losses, ties) < 0 or n == 0:
        raise ValueError(f"wins, losses and ties are {wins}, {losses} and {ties}, wanted at least 0 and not all 0")
    exact = [0.5 + (end - 0.5) * decided / n for end in clopper_pearson(wins, decided, tail=tail)]
    resampled = _bootstrap_end(wins, losses, ties, tail), 1 - _bootstrap_end(losses, wins, ties, tail)
    return WinInterval(
        rate=(wins + ties / 2) / n,
        low=min(exact[0], resampled[0]),
        high=max(exact[1], resampled[1]),
        p_value=upper_tail(wins, decided, 0.5),
        exact_low=exact[0],
        bootstrap_low=resampled[0],
        wins=wins,
        losses=losses,
        ties=ties,
    )


def paired_wins(a: ArrayLike, b: ArrayLike, *, tolerance: float, tail: float) -> WinInterval:
    """`win_interval` of scores: `a` wins a prompt where it scores above `b` by more than the tolerance.

    Args:
        a: scores of the first model, one for each prompt. [n]
        b: scores of the second on the same prompts, in the same order. [n]
        tolerance: scores no further apart are a tie, in score units.
        tail: as in `win_interval`.

    Raises:
        ValueError: as `rlhf.evaluation.statistics.win_points` and `win_interval`.
    """
    points = win_points(a, b, tolerance=tolerance)
    wins, losses = int((points == 1.0).sum()), int((points == 0.0).sum())
    return win_interval(wins, losses, len(points) - wins - losses, tail=tail)


def paired_difference(a: ArrayLike, b: ArrayLike, *, tail: float, resamples: int, seed: int) -> Interval:
    """Mean of a - b over prompts, with a bootstrap interval.

    Args:
        a: of the first model, one for each prompt. [n]
        b: of the second, in the same order. [n]
        tail: chance of error at each end, in (0, 0.5).
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: lengths differ, there is no number, one is not finite, or the tail is out of range.
    """
    _require_tail(tail)
    first, second = _paired(a, b)
    return mean_interval(first - second, seed=seed, resamples=resamples, level=1 - 2 * tail)


def paired_share_difference(a: ArrayLike, b: ArrayLike, *, tail: float, resamples: int, seed: int) -> Interval:
    """`paired_difference` of what is 0 or 1 for each prompt, widened to an exact interval.

    Only prompts on which the two differ say anything. With none of them a bootstrap gives an interval of no width, from
    eight prompts as from a thousand. Therefore the share of prompts gained and the share lost each get a
    Clopper-Pearson interval with half the error, and the difference of their ends is taken; with many differing prompts
    that is wider than need be.

    Args:
        a: as in `paired_difference`, each 0 or 1. [n]
        b: the same of the second. [n]
        tail: as there.
        resamples: as there.
        seed: as there.

    Raises:
        ValueError: as there, or a value is neither 0 nor 1.
    """
    found = paired_difference(a, b, tail=tail, resamples=resamples, seed=seed)
    first, second = _paired(a, b)
    if not np.isin((first, second), (0.0, 1.0)).all():
        raise ValueError("a or b holds a number that is neither 0 nor 1")
    n = len(first)
    gained = clopper_pearson(int((first > second).sum()), n, tail=tail / 2)
    lost = clopper_pearson(int((first < second).sum()), n, tail=tail / 2)
    return found._replace(low=min(found.low, gained[0] - lost[1]), high=max(found.high, gained[1] - lost[0]))


def paired_ratio(a: ArrayLike, b: ArrayLike, *, tail: float, resamples: int, seed: int) -> Interval:
    """sum(a) / sum(b) with a bootstrap interval over prompts.

    Args:
        a: of the first model, one for each prompt, at least 0. [n]
        b: of the second, in the same order, not all 0. [n]
        tail: chance of error at each end, in (0, 0.5).
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: as `paired_difference`, or b sums to 0.
    """
    _require_tail(tail)
    first, second = _paired(a, b)
    if not second.sum() > 0:
        raise ValueError(f"b sums to {second.sum()}, wanted a number above 0 to divide by")
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    block = max(1, RESAMPLE_ELEMENTS // len(first))
    for start in range(0, resamples, block):
        rows = generator.integers(0, len(first), size=(min(block, resamples - start), len(first)))
        above, below = first[rows].sum(axis=1), second[rows].sum(axis=1)
        ratios[start : start + block] = np.divide(above, below, out=np.full(len(rows), np.inf), where=below > 0)
    low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
    return Interval(float(first.sum() / second.sum()), float(low), float(high), len(first))


def _low_end(successes: int, n: int, tail: float) -> float:
    """The largest share, up to rounding downwards, under which so many successes are no likelier than `tail`."""
    terms = _terms(successes, n)
    low, high = 0.0, successes / n
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle <= 0.0 or _tail(*terms, n, middle) <= tail:
            low = middle
        else:
            high = middle
    return low


def _terms(successes: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """successes, ..., n, and the logarithms of their binomial coefficients."""
    k = np.arange(successes, n + 1)
    factorial = _log_factorials(n)
    return k, factorial[n] - factorial[k] - factorial[n - k]


def _tail(k: NDArray[np.int64], chosen: NDArray[np.float64], n: int, share: float) -> float:
    return min(1.0, float(np.exp(chosen + k * math.log(share) + (n - k) * math.log1p(-share)).sum()))


def _bootstrap_end(wins: int, losses: int, ties: int, tail: float) -> float:
    """The tail's quantile of the win rate over infinitely many resamples of the prompts.

    Nothing has to be drawn: a resample's wins less its losses are the sum of n draws from {+1, 0, -1}, whose
    distribution is the n-th convolution power, taken here by a discrete Fourier transform.
    """
    n = wins + losses + ties
    angle = 2 * np.pi * np.arange(2 * n + 1) / (2 * n + 1)
    once = (wins * np.exp(-1j * angle) + ties + losses * np.exp(1j * angle)) / n
    weights = np.fft.ifft(once**n).real.clip(min=0)
    cumulative = np.cumsum(np.roll(weights, n))  # of -n, ..., n
    lead = int(np.searchsorted(cumulative, tail)) - n
    return 0.5 + lead / (2 * n)


@lru_cache(maxsize=64)
def _log_factorials(n: int) -> NDArray[np.float64]:
    return np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1)))))


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"a has shape {first.shape} and b {second.shape}, wanted two rows of equal length, at least 1")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a or b holds a number that is not finite")
    return first, second


def _require_tail(tail: float) -> None:
    if not 0 < tail < 0.5:
        raise ValueError(f"tail is {tail} but must lie in (0, 0.5)")
