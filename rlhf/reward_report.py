"""What is known of a reward model on held-out records: of each member of an ensemble, and of their mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf.evaluation.judging import Scorer, pair_metrics, probe_metrics
from rlhf.rewards.ensemble import disagreement

SPLITS = ("train", "dev", "test")
Records = Sequence[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Records that nothing was trained on."""

    pairs: Mapping[str, Records]
    """By split."""
    rankings: Mapping[str, Records]
    """By split."""
    probes: Records
    """Minimal pairs of all splits, since nothing is trained on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What one scorer says of `HeldOut`, normalised."""

    pairs: dict[str, list[tuple[float, float]]]
    """(chosen, rejected) by split."""
    rankings: dict[str, list[list[float]]]
    """Scores of the answers of each ranking, by split."""
    probes: list[tuple[float, float]]
    unit: float
    """Raw reward units in one unit of the scores."""


def score_held_out(scorer: Scorer, held_out: HeldOut) -> Scored:
    """Score every held-out answer.

    Args:
        scorer: the trained model with its normaliser.
        held_out: records.
    """
    splits = SPLITS[1:]
    return Scored(
        pairs={split: scorer.score_pairs(rows) for split in splits if (rows := held_out.pairs[split])},
        rankings={split: _score_rankings(scorer, rows) for split in splits if (rows := held_out.rankings[split])},
        probes=scorer.score_pairs(held_out.probes) if held_out.probes else [],
        unit=scorer.model.std,
    )


def held_out_metrics(scored: Scored, held_out: HeldOut) -> dict[str, Any]:
    """Agreement with labels and rubric on held-out pairs and rankings, and with the flipped fact on minimal pairs.

    Args:
        scored: by one model, or the mean of several.
        held_out: the records.

    Returns:
        "dev" and "test" (`pair_metrics` with the mean margin), "probes" and "rankings", as far as there are records.
    """
    report: dict[str, Any] = {}
    for split, scores in scored.pairs.items():
        report[split] = pair_metrics(held_out.pairs[split], scores, scale=scored.unit)
        report[split]["margin"] = sum(chosen - rejected for chosen, rejected in scores) / len(scores)
    if scored.probes:
        report["probes"] = probe_metrics(held_out.probes, scored.probes)
    if scored.rankings:
        report["rankings"] = {
            split: {"rankings": len(rows), "accuracy": ranking_accuracy(held_out.rankings[split], rows)}
            for split, rows in scored.rankings.items()
        }
    return report


def ensemble_metrics(members: Sequence[Scored], held_out: HeldOut) -> dict[str, Any]:
    """What the mean of the members' scores is worth, and how far they disagree on the test pairs.

    Args:
        members: what each member says, at least one.
        held_out: the records.

    Returns:
        `held_out_metrics` of the mean; its "test" has also "disagreement", the mean over answers of the standard
        deviation over members, and "split_votes", the share of pairs that the members do not all order alike.
    """
    together = Scored(
        pairs={split: _means([one.pairs[split] for one in members]) for split in members[0].pairs},
        rankings={
            split: [
                torch.tensor(rows, dtype=torch.float64).mean(dim=0).tolist()
                for rows in zip(*(one.rankings[split] for one in members), strict=True)
            ]
            for split in members[0].rankings
        },
        probes=_means([one.probes for one in members]),
        unit=sum(one.unit for one in members) / len(members),
    )
    report = {"members": len(members), **held_out_metrics(together, held_out)}
    if "test" in together.pairs:
        each = torch.tensor([one.pairs["test"] for one in members], dtype=torch.float64)
        votes = torch.sign(each[..., 0] - each[..., 1])
        report["test"]["disagreement"] = float(disagreement(each.flatten(1)).mean())
        report["test"]["split_votes"] = float((votes != votes[0]).any(dim=0).double().mean())
    return report


def ranking_accuracy(rankings: Records, scores: Sequence[Sequence[float]]) -> float | None:
    """Mean over rankings of the share of their decided pairs that are in the right order; equal scores count half.

    Args:
        rankings: records with `ranks`.
        scores: of the answers of each.

    Returns:
        The share, in [0, 1]; None when every ranking is one tie.
    """
    shares = []
    for ranking, values in zip(rankings, scores, strict=True):
        ranks = ranking["ranks"]
        places = range(len(ranks))
        decided = [(a, b) for a in places for b in places if ranks[a] < ranks[b]]
        wins = sum((values[a] > values[b]) + 0.5 * (values[a] == values[b]) for a, b in decided)
        if decided:
            shares.append(wins / len(decided))
    return sum(shares) / len(shares) if shares else None


def _score_rankings(scorer: Scorer, rows: Records) -> list[list[float]]:
    flat = [(row["prompt"], text) for row in rows for text in row["responses"]]
    scores = iter(scorer.score_texts([prompt for prompt, _ in flat], [text for _, text in flat]))
    return [[next(scores) for _ in row["responses"]] for row in rows]


def _means(members: Sequence[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Mean over members of (chosen, rejected) scores."""
    return [
        (sum(a for a, _ in each) / len(each), sum(b for _, b in each) / len(each))
        for each in zip(*members, strict=True)
    ]
