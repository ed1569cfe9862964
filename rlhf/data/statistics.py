"""Figures that describe validated data: lengths, length bias, ties, annotators and how far they agree."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations

from rlhf.data.agreement import cohen_kappa
from rlhf.data.ledger import FOLDERS, Entry, Ledger
from rlhf.data.splits import SPLITS, UNLIKE


def double_ratings(pairs: Iterable[Entry]) -> list[tuple[int, int]]:
    """What two annotators said of the same two answers, for every two of them who saw the same.

    Ratings stand in the order of the annotators' names, so that each keeps one side.
    """
    by_answers: dict[int, dict[str, int]] = defaultdict(dict)
    for entry in pairs:
        if entry.annotator is not None:
            by_answers[entry.answers].setdefault(entry.annotator, entry.direction)
    return [
        (said[first], said[second]) for said in by_answers.values() for first, second in combinations(sorted(said), 2)
    ]


def describe_pairs(pairs: Sequence[Entry]) -> dict[str, object]:
    """Ties, length bias, annotators and their agreement.

    Returns:
        `tie_share`; `longer_wins`, the share of decided pairs of unequal length in which the longer answer was
        chosen (0.5 is no bias); mean characters; rows by annotator; pairs rated twice, the share on which the two
        agree and their kappa. What cannot be computed is left out.
    """
    decided = [entry for entry in pairs if entry.direction != 0]
    unequal = [entry.answer_chars for entry in decided if entry.answer_chars[0] != entry.answer_chars[1]]
    annotators = Counter(entry.annotator for entry in pairs if entry.annotator is not None)
    ratings = double_ratings(pairs)
    figures: dict[str, object] = {"rows": len(pairs)}
    if pairs:
        figures["tie_share"] = 1 - len(decided) / len(pairs)
        figures["chosen_chars"] = _mean(entry.answer_chars[0] for entry in pairs)
        figures["rejected_chars"] = _mean(entry.answer_chars[1] for entry in pairs)
    if unequal:
        figures["longer_wins"] = _mean(chosen > rejected for chosen, rejected in unequal)
    if annotators:
        figures["annotators"] = {str(name): annotators[name] for name in sorted(annotators, key=str)}
    if ratings:
        figures["rated_twice"] = len(ratings)
        figures["agreement"] = _mean(first == second for first, second in ratings)
        figures["kappa"] = cohen_kappa(ratings)
    return figures


def describe_verdicts(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Rankings with the mean number of their responses and judgements with the share of good ones, where there are."""
    rankings, judgements = list(ledger.entries("rankings")), list(ledger.entries("judgements"))
    figures: dict[str, dict[str, float]] = {}
    if rankings:
        responses = _mean(len(entry.answer_chars) for entry in rankings)
        figures["rankings"] = {"rows": len(rankings), "responses": responses}
    if judgements:
        good = _mean(entry.direction == 1 for entry in judgements)
        figures["judgements"] = {"rows": len(judgements), "good_share": good}
    return figures


def mean_lengths(ledger: Ledger) -> dict[str, dict[str, float]]:
    """Mean characters of the prompts, and of the responses where there are any, folder by folder."""
    figures: dict[str, dict[str, float]] = {}
    for folder in FOLDERS:
        entries = [entry for split in SPLITS for entry in ledger.parts[folder, split].kept()]
        if entries:
            figures[folder] = {"prompt": _mean(entry.prompt_chars for entry in entries)}
            if entries[0].answer_chars:
                figures[folder]["answer"] = _mean(_mean(entry.answer_chars) for entry in entries)
    return figures


def shared_prompts(ledger: Ledger) -> int:
    """Prompts that occur in more than one split, or in one and among the unlike; anything but 0 is a leak."""
    sets = [ledger.prompts(split) for split in (*SPLITS, UNLIKE)]
    return sum(len(first & second) for first, second in combinations(sets, 2))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
