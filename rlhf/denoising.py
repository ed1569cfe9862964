"""The list of training pairs whose label is probably wrong, and the data without them or with them turned round."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlhf.cross_validation import out_of_fold_margins
from rlhf.errors import BadInput
from rlhf.evaluation.judging import gold_score
from rlhf.label_errors import (
    Truth,
    against_truth,
    calibrated_slope,
    cleaned,
    folds_by_prompt,
    right_probabilities,
    suspects,
)
from rlhf.outputs import read_jsonl, rounded
from rlhf.reward_config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoised:
    """What was found about a set of pairs."""

    listed: list[dict[str, Any]]
    """One row for each pair, the most suspicious first."""
    summary: dict[str, Any]
    """Counts, and on the embedded task the comparison with known errors."""


class Judged(NamedTuple):
    """Pairs that took part, with what the models say."""

    records: list[dict[str, Any]]
    folds: list[int]
    margins: torch.Tensor
    probabilities: torch.Tensor
    flagged: list[bool]


def denoise(pairs: Path, *, config: Config, sft: Path, folds: int, seed: int) -> Denoised:
    """Find label errors among training pairs.

    Pairs that were called a tie have no order that could be wrong and take no part.

    Args:
        pairs: file of pair records, such as data/validated/pairs/train.jsonl.
        config: of the reward models.
        sft: folder of the policy that they start from.
        folds: number of parts, at least 2.
        seed: of division and training.

    Returns:
        The list and its summary.

    Raises:
        BadInput: fewer prompts than folds, or nothing to train on.
        StageFailed: training diverged.
    """
    records = [record for record in read_jsonl(pairs) if record["label"] > 0.5][: config.max_pairs]
    try:
        fold_of = folds_by_prompt([record["prompt"] for record in records], folds, seed=seed)
    except ValueError as error:
        raise BadInput(f"{pairs}: {error}; lower --folds or bring in more pairs") from error
    found = out_of_fold_margins(records, fold_of, config=config, sft=sft, seed=seed)
    labels = torch.tensor([record["label"] for record in records], dtype=torch.float64)
    probabilities = torch.zeros(len(records), dtype=torch.float64)
    slopes = []
    for fold in range(folds):
        # Each model has a unit of its own, so each is calibrated by itself before all are ranked together.
        inside = torch.tensor([own == fold for own in fold_of])
        slopes.append(calibrated_slope(found.margins[inside], labels[inside]))
        probabilities[inside] = right_probabilities(found.margins[inside], slopes[-1])
    flagged = suspects(probabilities).tolist()
    judged = Judged(records, fold_of, found.margins, probabilities, flagged)
    order = sorted(range(len(records)), key=lambda place: (float(probabilities[place]), str(records[place]["id"])))
    summary = {
        "pairs": len(records),
        "folds": folds,
        "seed": seed,
        "epochs": config.epochs,
        "skipped_updates": found.skipped,
        "agreement": float((found.margins > 0).double().mean()),
        "slopes": slopes,
        "threshold": float(probabilities.mean()),
        "flagged": sum(flagged),
        "flagged_by_annotator": _by_annotator(records, flagged),
        "truth": _as_dict(against_truth(order, flagged, [known_to_be_wrong(record) for record in records])),
    }
    return Denoised(listed=[_row(judged, place, rank) for rank, place in enumerate(order, start=1)], summary=summary)


def known_to_be_wrong(record: Mapping[str, Any]) -> bool | None:
    """Whether the rubric orders the answers against the label; None where it does not apply or calls a tie.

    For measuring only: nothing that this module writes for training looks at it.
    """
    better, worse = gold_score(record["meta"], record["chosen"]), gold_score(record["meta"], record["rejected"])
    if better is None or worse is None or better == worse:
        return None
    return better < worse


def cleaned_files(
    folder: Path, judge_pairs: Path, listed: Sequence[Mapping[str, Any]], *, action: str, origin: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every pair of the project once, with the flagged training pairs dropped or turned round.

    Held-out pairs and the judge's own are given unchanged, so that the result can stand in for the files that the
    pairs came from: a prompt's split does not depend on the file.

    Args:
        folder: data/validated/pairs.
        judge_pairs: data/validated/judge_pairs; its dev and test are those of `folder`.
        listed: what `denoise` listed.
        action: "drop" or "flip".
        origin: kept with every flipped pair.
    """
    suspicion = {str(row["id"]): float(row["suspicion"]) for row in listed if row["flagged"]}
    for record in read_jsonl(folder / "train.jsonl"):
        if str(record["id"]) not in suspicion:
            yield record
            continue
        kept = cleaned(record, suspicion[str(record["id"])], action, origin)
        if kept is not None:
            yield kept
    for file in (judge_pairs / "train.jsonl", folder / "dev.jsonl", folder / "test.jsonl"):
        yield from read_jsonl(file)


def sources_of_pairs(folder: Path, judge_pairs: Path) -> list[str]:
    """The raw files that the pairs came from, as `validate.files` could name them."""
    files = [folder / f"{split}.jsonl" for split in ("train", "dev", "test")]
    return sorted(
        {str(record["source"]) for file in (*files, judge_pairs / "train.jsonl") for record in read_jsonl(file)}
    )


def _row(judged: Judged, place: int, rank: int) -> dict[str, Any]:
    record = judged.records[place]
    row: dict[str, Any] = rounded(
        {
            "rank": rank,
            "suspicion": 1.0 - float(judged.probabilities[place]),
            "flagged": judged.flagged[place],
            "margin": float(judged.margins[place]),
            "fold": judged.folds[place],
        }
    )
    shown = ("id", "annotator", "label", "prompt", "chosen", "rejected", "source")
    return {**row, **{name: record[name] for name in shown}}


def _by_annotator(records: Sequence[Mapping[str, Any]], flagged: Sequence[bool]) -> dict[str, dict[str, float]]:
    """Pairs and the flagged share of each annotator, in alphabetical order."""
    names = [str(record["annotator"] or "unknown") for record in records]
    pairs = Counter(names)
    suspicious = Counter(name for name, suspect in zip(names, flagged, strict=True) if suspect)
    return {name: {"pairs": pairs[name], "share": suspicious[name] / pairs[name]} for name in sorted(pairs)}


def _as_dict(truth: Truth | None) -> dict[str, Any] | None:
    return None if truth is None else truth._asdict()
