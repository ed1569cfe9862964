"""How many prompts it takes to see a difference, and what a given number of prompts can see.

Everything is about the one-sided exact test of `rlhf.evaluation.paired_tests`, with the ties to be expected left out,
so that the figures are those of the test that is really made and not of its normal approximation.
"""

from functools import lru_cache

from rlhf.evaluation.paired_tests import upper_tail

MOST_PROMPTS = 100_000
"""Beyond this nobody asks; the answer is None."""
HALVINGS = 20
"""Of the range of win rates: 1e-6."""


def power(n: int, rate: float, *, ties: float, tail: float, threshold: float = 0.5) -> float:
    """Chance that the exact test finds a win rate to be above the threshold.

    Args:
        n: prompts.
        rate: the true win rate, ties counting half, in [0, 1].
        ties: share of prompts on which neither wins, in [0, 1].
        tail: chance of error of the test.
        threshold: win rate that has to be exceeded.
    """
    decided = round(n * (1 - ties))
    if decided < 1:
        return 0.0
    return upper_tail(_critical(decided, _share(threshold, ties), tail), decided, _share(rate, ties))


@lru_cache(maxsize=1024)
def prompts_for(rate: float, *, ties: float, tail: float, wanted: float, threshold: float = 0.5) -> int | None:
    """Number of prompts with which a win rate is found with the wanted power.

    Power is not quite monotonic in n, since a count of wins is whole; the number returned does have it.

    Args:
        rate: the true win rate, ties counting half.
        ties: as in `power`.
        tail: as in `power`.
        wanted: power, in (0, 1).
        threshold: as in `power`.

    Returns:
        None where the rate is not above the threshold or more than 100,000 prompts would be needed.
    """
    if rate <= threshold or ties >= 1:
        return None

    def enough(n: int) -> bool:
        return power(n, rate, ties=ties, tail=tail, threshold=threshold) >= wanted

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_PROMPTS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@lru_cache(maxsize=1024)
def detectable(n: int, *, ties: float, tail: float, wanted: float, threshold: float = 0.5) -> float | None:
    """The smallest win rate that so many prompts find with the wanted power.

    Args:
        n: prompts.
        ties: as in `power`.
        tail: as in `power`.
        wanted: power, in (0, 1).
        threshold: as in `power`.

    Returns:
        None where even winning every decided comparison would not be found.
    """
    low, high = threshold, 0.5 + (1 - ties) / 2
    if high <= low or power(n, high, ties=ties, tail=tail, threshold=threshold) < wanted:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if power(n, middle, ties=ties, tail=tail, threshold=threshold) >= wanted:
            high = middle
        else:
            low = middle
    return high


def _share(rate: float, ties: float) -> float:
    """Share of the decided comparisons that a win rate with ties half amounts to."""
    return min(1.0, max(0.0, 0.5 + (rate - 0.5) / (1 - ties)))


def _critical(decided: int, share: float, tail: float) -> int:
    """Fewest wins that are no likelier than `tail` at the threshold; more than there are where none is."""
    low, high = 0, decided + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_tail(middle, decided, share) <= tail else (middle, high)
    return high
