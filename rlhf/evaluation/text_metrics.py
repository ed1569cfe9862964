"""What can be seen in texts without a model: length, repetition, variety, and whether answers come to an end."""

from collections.abc import Sequence


def length_words(text: str) -> int:
    """Length of a text.

    Args:
        text: any text.

    Returns:
        Number of words, split at white space.
    """
    return len(text.split())


def repetition(text: str, *, n: int = 4) -> float:
    """Share of a text's word n-grams that occurred before in the same text.

        1 - distinct n-grams / n-grams

    Args:
        text: any text.
        n: words in an n-gram, at least 1.

    Returns:
        0 for a text that never repeats (or is shorter than n words), towards 1 for one that loops.

    Raises:
        ValueError: n is below 1.
    """
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct_n(texts: Sequence[str], *, n: int = 2) -> float:
    """Variety of a set of answers: different word n-grams over all n-grams.

    Falls with the number of texts, so compare sets of equal size only.

    Source: Li et al. 2016, section 5.3, https://arxiv.org/abs/1510.03055

    Args:
        texts: answers of one policy.
        n: words in an n-gram, at least 1.

    Returns:
        In (0, 1], or 0 when no text has n words.

    Raises:
        ValueError: n is below 1.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def end_rate(ended: Sequence[bool]) -> float:
    """Share of responses that ended with an end token rather than at the length limit.

    Args:
        ended: one for each response.

    Returns:
        In [0, 1].

    Raises:
        ValueError: there is no response.
    """
    if not ended:
        raise ValueError("there is no response, so there is no end rate")
    return sum(ended) / len(ended)


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n is {n} but must be at least 1")
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
