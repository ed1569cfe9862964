"""Figures that describe validated data: lengths, length bias, ties, annotators and how far they agree."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from rlhf.data.agreement import cohen_kappa
from rlhf.data.entries import FOLDERS, Entries
from rlhf.data.ledger import Ledger
from rlhf.data.splits import SPLITS, UNLIKE


def double_ratings(pairs: Entries, annotators: Sequence[str]) -> list[tuple[int, int]]:
    """What two annotators said of the same two answers, for every two of them who saw the same.

    Ratings stand in the order of the annotators' names, so that each keeps one side.
    """
    named = pairs[pairs["annotator"] >= 0]
    hashes, counts = np.unique(named["answers"], return_counts=True)
    several = named[np.isin(named["answers"], hashes[counts > 1])]
    by_answers: dict[int, dict[str, int]] = defaultdict(dict)
    for answers, annotator, direction in several[["answers", "annotator", "direction"]].tolist():
        by_answers[answers].setdefault(annotators[annotator], direction)
    return [
        (said[first], said[second]) for said in by_answers.values() for first, second in combinations(sorted(said), 2)
    ]


def describe_pairs(pairs: Entries, annotators: Sequence[str]) -> dict[str, object]:
    """Ties, length bias, annotators and their agreement.

    Args:
        pairs: any pairs.
        annotators: names that `annotator` speaks of.

    Returns:
        `tie_share`; `longer_wins`, the share of decided pairs of unequal length in which the longer answer was
        chosen (0.5 is no bias); mean characters; rows by annotator; pairs rated twice, the share on which the two
        agree and their kappa. What cannot be computed is left out.
    """
    decided = pairs[pairs["direction"] != 0]
    unequal = decided[decided["first_chars"] != decided["second_chars"]]
    codes, counts = np.unique(pairs["annotator"][pairs["annotator"] >= 0], return_counts=True)
    rows = {annotators[code]: count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)}
    ratings = double_ratings(pairs, annotators)
    figures: dict[str, object] = {"rows": len(pairs)}
    if len(pairs):
        figures["tie_share"] = 1 - len(decided) / len(pairs)
        figures["chosen_chars"] = _share(pairs["first_chars"])
        figures["rejected_chars"] = _share(pairs["second_chars"])
    if len(unequal):
        figures["longer_wins"] = _share(unequal["first_chars"] > unequal["second_chars"])
    if rows:
        figures["annotators"] = {name: rows[name] for name in sorted(rows)}
    if ratings:
        figures["rated_twice"] = len(ratings)
        figures["agreement"] = _mean(first == second for first, second in ratings)
        figures["kappa"] = cohen_kappa(ratings)
    return figures


def describe_verdicts(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Rankings with the mean number of their responses and judgements with the share of good ones, where there are."""
    rankings, judgements = ledger.entries("rankings"), ledger.entries("judgements")
    figures: dict[str, dict[str, float]] = {}
    if len(rankings):
        figures["rankings"] = {"rows": len(rankings), "responses": _share(rankings["answers_number"])}
    if len(judgements):
        figures["judgements"] = {"rows": len(judgements), "good_share": _share(judgements["direction"] == 1)}
    return figures


def mean_lengths(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Mean characters of the prompts, and of the responses where there are any, folder by folder."""
    figures: dict[str, dict[str, float]] = {}
    for folder in FOLDERS:
        entries = np.concatenate([ledger.parts[folder, split].kept() for split in SPLITS])
        if len(entries):
            figures[folder] = {"prompt": _share(entries["prompt_chars"])}
            if entries["answers_number"][0]:
                figures[folder]["answer"] = _mean((entries["answer_chars"] / entries["answers_number"]).tolist())
    return figures


def shared_prompts(ledger: Ledger) -> int:
    """Prompts that occur in more than one split, or in one and among the unlike; anything but 0 is a leak."""
    found = [ledger.prompts(split) for split in (*SPLITS, UNLIKE)]
    return sum(len(np.intersect1d(first, second, assume_unique=True)) for first, second in combinations(found, 2))


def _share(numbers: Any) -> float:
    """Mean of whole numbers or of yes and no, from their exact sum. [N]."""
    return int(numbers.sum(dtype=np.int64)) / len(numbers)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
