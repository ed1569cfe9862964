"""Raw files of any known format become canonical records: checked, deduplicated, split, counted.

What is refused is written to the quarantine with its file, line, field, value and reason. Nothing here depends on the
seed of the run: which split a prompt belongs to is decided by `split_seed` alone, and stays.
"""

import logging
from collections import Counter
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

from rlhf.data import contracts, derivation, intake, splits, statistics
from rlhf.data.detect import Detected
from rlhf.data.entries import FOLDERS, Placement
from rlhf.data.intake import Refused
from rlhf.data.ledger import Ledger
from rlhf.data.raw_files import find_files
from rlhf.data.row_checks import checked_rows, unread_blocks
from rlhf.data.workers import Workers
from rlhf.errors import BadInput
from rlhf.outputs import write_jsonl, write_metrics

log = logging.getLogger(__name__)

WORST = 3
"""Reasons named when there are too many bad rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of `validate`."""

    files: tuple[str, ...]
    """Names relative to data/raw: files, folders or glob patterns; at least one."""
    formats: dict[str, str]
    """Format by file name, for files whose format is not to be detected; may be empty."""
    max_bad_fraction: float
    """The stage fails when a larger share of the raw rows is refused, in [0, 1]."""
    test_fraction: float
    """Share of the prompts kept for the final report and the gate, in (0, 1)."""
    dev_fraction: float
    """Share of the prompts on which choices are made, in (0, 1)."""
    judge_fraction: float
    """Share of the training prompts whose pairs only the judge sees, in (0, 1)."""
    split_seed: int
    """Part of the hash that splits prompts; changing it moves every prompt."""
    max_prompt_chars: int
    """Longest prompt, all its messages together, characters, at least 1."""
    max_response_chars: int
    """Longest answer, characters, at least 1."""
    demonstrations_from: Literal["auto", "demonstrations", "chosen"]
    """Where demonstrations come from; auto: demonstration records, or the best answers where there are none."""
    prompts_from: Literal["auto", "prompts", "pairs", "all"]
    """Where prompts come from; auto: prompt records, else the prompts of pairs and rankings, else of all records."""
    max_demonstrations: int | None
    """Most training demonstrations; null for all."""
    max_pairs: int | None
    """Most training pairs of the reward model, and of the judge; also most rankings and judgements; null for all."""
    max_prompts: int | None
    """Most training prompts; null for all."""
    max_held_out: int | None
    """Most records of each kind in dev, and in test; null for all. Probes are not limited."""
    workers: int = 1
    """Processes that read and check large files (the stage's `threads`, handed over); results do not depend on it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("test_fraction", "dev_fraction", "judge_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted a fraction between 0 and 1")
        if self.test_fraction + self.dev_fraction >= 1:
            raise ValueError("test_fraction and dev_fraction leave nothing for training; their sum must be below 1")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}, wanted at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {self.max_bad_fraction}, wanted a fraction between 0 and 1")
        for name in (entry.name for entry in fields(self) if entry.name.startswith("max_")):
            value = getattr(self, name)
            if name != "max_bad_fraction" and value is not None and value < 1:
                raise ValueError(f"{name} is {value}, wanted at least 1")


@dataclass(slots=True)
class Tally:
    """What happened to the raw rows."""

    read: int = 0
    refused: list[Refused] = field(default_factory=list)
    duplicates: int = 0

    def by_reason(self) -> Counter[str]:
        """Refused rows by the first reason of each."""
        return Counter(failure.reason for failure in self.first_failures())

    def first_failures(self) -> list[Refused]:
        """One failure for each refused row."""
        first: dict[tuple[str, int], Refused] = {}
        for failure in self.refused:
            first.setdefault((failure.file, failure.line), failure)
        return list(first.values())


def main(
    config: Config,
    *,
    seed: int,
    stage: str,
    raw: Path,
    demonstrations: Path,
    pairs: Path,
    judge_pairs: Path,
    prompts: Path,
    probes: Path,
    rankings: Path,
    judge_rankings: Path,
    judgements: Path,
    quarantine: Path,
    metrics: Path,
) -> None:
    """Validate the files that `config.files` names.

    Args:
        config: settings.
        seed: not used; see the module's text.
        stage: not used; the recipe serves one stage.
        raw: folder of raw files.
        demonstrations: folder to write; like the next seven it gets train.jsonl, dev.jsonl and test.jsonl.
        pairs: the same, for the reward model and DPO.
        judge_pairs: the same, for the judge; its dev and test are those of `pairs`.
        prompts: the same, and unlike.jsonl, of prompts that are marked as unlike all others and never trained on.
        probes: the same; all probes are in test.
        rankings: the same, for the reward model; may hold nothing but empty files.
        judge_rankings: the same, for the judge; its dev and test are those of `rankings`.
        judgements: the same; may hold nothing but empty files.
        quarantine: file to write, one refused row (or one of several failures of it) a line.
        metrics: file to write.

    Raises:
        BadInput: a file is of no use, too many rows are refused, or a split stays empty.
    """
    # 1. which files, in which formats: refused here before anything is read whole
    files = intake.formats(find_files(raw, config.files), config.formats)
    paths = (demonstrations, pairs, judge_pairs, prompts, probes, rankings, judge_rankings, judgements)
    where = dict(zip(FOLDERS, paths, strict=True))
    split_of = partial(
        splits.split_of, seed=config.split_seed, test_fraction=config.test_fraction, dev_fraction=config.dev_fraction
    )
    for_judge = partial(splits.is_for_judge, seed=config.split_seed, judge_fraction=config.judge_fraction)
    with (
        Workers(config.workers) as workers,
        Ledger(quarantine.parent / ".spool", Placement(split_of, for_judge), workers=workers) as ledger,
    ):
        # 2. read, check, drop what is there already
        tally = _read(config, files, ledger, workers)
        write_jsonl(quarantine, map(Refused._asdict, tally.refused))
        _refuse_too_many(config, tally, quarantine)
        # 3. decisions that need the whole
        derivation.derive_pairs(ledger)
        contradictions = ledger.drop_contradictions()
        derivation.derive_the_rest(
            ledger, demonstrations_from=config.demonstrations_from, prompts_from=config.prompts_from
        )
        derivation.limit(ledger, _training_limits(config), config.max_held_out)
        not_held_out, not_unlike = ledger.drop_known_probes(), ledger.drop_known_unlike()
        judged = ledger.drop_judged_by_judge()
        # 4. write
        write_jsonl(quarantine, map(Refused._asdict, [*tally.refused, *contradictions, *not_held_out, *not_unlike]))
        derivation.refuse_empty(ledger)
        counts = {folder: ledger.write(folder, where[folder]) for folder in FOLDERS}
        bad = len(tally.first_failures())
        figures = {
            "rows": {
                "read": tally.read,
                "refused": bad,
                "refused_fraction": bad / tally.read,
                "duplicates": tally.duplicates,
                "contradictory": len(contradictions),
                "probes_not_held_out": len(not_held_out),
                "prompts_not_unlike": len(not_unlike),
                "judgements_on_judge_prompts": judged,
                "repeated_ids": ledger.repeated_ids,
            },
            "refused": dict(sorted(tally.by_reason().items())),
            "kept": counts,
            "prompts_in_two_splits": statistics.shared_prompts(ledger),
            "pairs": statistics.describe_pairs(ledger.pairs(), ledger.annotators),
            **statistics.describe_verdicts(ledger),
            "mean_chars": statistics.mean_lengths(ledger),
        }
    write_metrics(metrics, figures)
    log.info("%d of %d rows refused, %d duplicates, kept %s", bad, tally.read, tally.duplicates, counts)


def _read(config: Config, files: list[tuple[str, Path, Detected]], ledger: Ledger, workers: Workers) -> Tally:
    """Read all files in blocks, through the contracts and into the ledger."""
    tally = Tally()
    limits = contracts.Limits(prompt_chars=config.max_prompt_chars, response_chars=config.max_response_chars)
    for name, path, detected in files:
        check = partial(
            checked_rows, name=name, format=detected.format, file=ledger.file(name), limits=limits,
            placement=ledger.placement,
        )  # fmt: skip
        good, refused = 0, list[Refused]()
        for found in workers.map(check, unread_blocks(path)):
            tally.read += found.rows
            refused += found.refused
            good += found.good
            tally.duplicates += len(found.block.lines) - ledger.take(found.block)
        if not good:
            raise intake.useless(path, detected, refused)
        tally.refused += refused
        log.info("%s: read as %s because %s", name, detected.format, detected.why)
    return tally


def _refuse_too_many(config: Config, tally: Tally, quarantine: Path) -> None:
    failures = tally.first_failures()
    if len(failures) <= config.max_bad_fraction * tally.read:
        return
    examples: dict[str, Refused] = {}
    for failure in failures:
        examples.setdefault(failure.reason, failure)
    worst = "; ".join(
        f"{reason} in {count} rows ({example.file}:{example.line} {example.field}: {example.value!r})"
        for reason, count in tally.by_reason().most_common(WORST)
        if (example := examples[reason])
    )
    raise BadInput(
        f"{len(failures)} of {tally.read} raw rows ({len(failures) / tally.read:.1%}) are bad, more than "
        f"validate.max_bad_fraction = {config.max_bad_fraction:g} allows: {worst}; all are listed in {quarantine}"
    )


def _training_limits(config: Config) -> dict[str, int | None]:
    return {
        "demonstrations": config.max_demonstrations,
        "pairs": config.max_pairs,
        "judge_pairs": config.max_pairs,
        "prompts": config.max_prompts,
        "rankings": config.max_pairs,
        "judge_rankings": config.max_pairs,
        "judgements": config.max_pairs,
    }
