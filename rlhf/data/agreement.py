"""How far two people who judge the same things agree."""

from collections import Counter
from collections.abc import Sequence


def cohen_kappa(ratings: Sequence[tuple[int, int]]) -> float:
    """Agreement of two raters beyond chance.

        kappa = (p_o - p_e) / (1 - p_e)

    p_o is the share of items on which they agree, p_e the share expected if each chose at random with their own
    frequencies.

    Source: Cohen 1960, A coefficient of agreement for nominal scales, https://doi.org/10.1177/001316446002000104

    Args:
        ratings: the two raters' categories, item by item; at least one item.

    Returns:
        At most 1; 0 is chance. NaN when both always said the same one thing, for then agreement means nothing.

    Raises:
        ValueError: there is no item.
    """
    if not ratings:
        raise ValueError("kappa needs at least one item that two people rated")
    total = len(ratings)
    observed = sum(first == second for first, second in ratings) / total
    firsts, seconds = Counter(first for first, _ in ratings), Counter(second for _, second in ratings)
    expected = sum(firsts[category] * seconds[category] for category in firsts) / total**2
    return float("nan") if expected == 1.0 else (observed - expected) / (1.0 - expected)
