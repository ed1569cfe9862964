"""From several answers to one prompt, and what a judge says of them, to the pairs that are worth keeping."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, NamedTuple, TypeAlias

LOST = "\ufffd"
"""What a tokenizer writes for bytes that are no text; `validate` refuses a record that holds it."""
TIE = 1e-4
"""Scores this close are a tie: equal answers differ by less, through the padding that they are batched with."""
Which: TypeAlias = Literal["best_worst", "all"]
WHICH: tuple[Which, ...] = ("best_worst", "all")


class JudgedPair(NamedTuple):
    """Two answers to one prompt, by their places, the one that was drawn earlier first."""

    first: int
    second: int
    label: float
    """Probability that the first is better, in [0, 1]; 0.5 is a tie."""


def usable(texts: Sequence[str], ended: Sequence[bool]) -> list[int]:
    """Places of the answers that can stand in a pair: ended by themselves, not empty, all text, and each text once.

    A cut answer would teach that its last word is an end, since a pair is read with an end token after each answer.

    Args:
        texts: answers to one prompt.
        ended: whether each ended by itself.
    """
    seen: set[str] = set()
    places = []
    for place, (text, whole) in enumerate(zip(texts, ended, strict=True)):
        bare = text.strip()
        if whole and bare and LOST not in bare and bare not in seen:
            seen.add(bare)
            places.append(place)
    return places


def every_pair(count: int) -> list[tuple[int, int]]:
    """All count (count - 1) / 2 pairs of places, the smaller place first."""
    return list(combinations(range(count), 2))


def pairs_by_score(scores: Sequence[float], which: Which) -> list[JudgedPair]:
    """Pairs of answers that were scored one by one; the higher score is the better answer, near ones are a tie.

    Args:
        scores: one for each answer.
        which: "all" pairs, or "best_worst": the one pair of highest and lowest score (the earliest of each), none
            where they tie.
    """
    if which == "all":
        return [JudgedPair(a, b, _label(scores[a], scores[b])) for a, b in every_pair(len(scores))]
    chosen = _extremes(scores)
    return [JudgedPair(*chosen, _label(scores[chosen[0]], scores[chosen[1]]))] if chosen else []


def pairs_by_verdict(verdicts: Mapping[tuple[int, int], float], which: Which) -> list[JudgedPair]:
    """Pairs of answers that were compared with each other; a comparison that failed is simply not there.

    For "best_worst" an answer's score is its mean probability of winning over its comparisons (Copeland's count when
    there are no failures), and the pair keeps the label of its own comparison, which may be a tie. Where that very
    comparison failed, there is no pair.

    Args:
        verdicts: (earlier place, later place) to the probability that the earlier answer is better.
        which: as in `pairs_by_score`.
    """
    if which == "all":
        return [JudgedPair(a, b, verdicts[a, b]) for a, b in sorted(verdicts)]
    wins: dict[int, list[float]] = {}
    for a, b in sorted(verdicts):
        wins.setdefault(a, []).append(verdicts[a, b])
        wins.setdefault(b, []).append(1.0 - verdicts[a, b])
    places = sorted(wins)
    chosen = _extremes([sum(wins[place]) / len(wins[place]) for place in places])
    if chosen is None:
        return []
    a, b = (places[index] for index in chosen)
    return [JudgedPair(a, b, verdicts[a, b])] if (a, b) in verdicts else []


def _extremes(scores: Sequence[float]) -> tuple[int, int] | None:
    """Places of the highest and the lowest score, the smaller place first; None where they tie."""
    if not scores or max(scores) - min(scores) <= TIE:
        return None
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    return min(best, worst), max(best, worst)


def _label(first: float, second: float) -> float:
    return 0.5 if abs(first - second) <= TIE else float(first > second)
