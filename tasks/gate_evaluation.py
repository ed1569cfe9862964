"""The answers that the gate compares: the evaluation's where it looked at the very weights, else generated anew.

Answers are never compared across conditions: whoever is compared answers the test prompts of the evaluation in the
work tree, with its decoding, and is scored by its judge. A champion that was evaluated on other prompts answers these.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput, StageFailed
from rlhf.evaluation.text_metrics import repetition
from rlhf.outputs import atomic_writer, read_jsonl, write_jsonl
from tasks.gate_answers import Request, as_json
from tasks.gate_measure import Answer
from tasks.lock_file import LockedStage, read_lock
from tasks.process import run_supervised
from tasks.registry import Version
from tasks.settings import environment, tmp_dir
from tasks.stage_outputs import EVALUATE, MODELS, matches_lock
from tasks.weights import registered_weights

ANSWERS = "data/evaluation/answers.jsonl"
BASELINE = "sft"
JUDGE = "judge"

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """The evaluation in the work tree, which the recorded one is."""

    locked: LockedStage
    rows: Mapping[str, Mapping[str, Row]]
    """Policy -> prompt id -> row, on the test prompts."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Parameters of the evaluation."""
        found = self.locked.params.get(EVALUATE)
        return found if isinstance(found, Mapping) else {}

    @property
    def ids(self) -> list[str]:
        """The test prompts."""
        return sorted(self.rows[BASELINE])

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """The test prompts as the gate's own answers are asked for."""
        found = (self.rows[BASELINE][name] for name in self.ids)
        return [{"id": row["id"], "prompt": row["prompt"], "meta": row["meta"]} for row in found]

    @property
    def decoding(self) -> dict[str, Any]:
        """How answers are drawn, apart from the seed."""
        drawn = {name: self.settings[name] for name in ("temperature", "max_new_tokens", "batch", "precision")}
        drawn["matmul"] = self.settings.get("matmul", "native")  # an older evaluation has no such key
        return drawn

    @property
    def seed(self) -> int:
        """Seed of the answers."""
        return int(self.locked.params.get("seed", 0))

    def digest(self, *more: Any) -> str:
        """Digest of all that answers depend on beside the policy's weights: prompts, judge, decoding, seed."""
        deps = self.locked.deps
        depends = [*more, deps.get(MODELS + JUDGE), deps.get(MODELS + BASELINE)]
        text = json.dumps([depends, self.prompts, self.decoding, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def covers(self, stage: str, md5: str) -> bool:
        """Tell whether these very weights were evaluated, on the same prompts as the baseline."""
        rows, asked = self.rows.get(stage), self.rows[BASELINE]
        if rows is None or self.locked.deps.get(MODELS + stage) != md5:
            return False
        return rows.keys() == asked.keys() and all(rows[name]["prompt"] == asked[name]["prompt"] for name in asked)


def load_evaluation(root: Path) -> Evaluated:
    """Read the evaluation's answers to the test prompts.

    Raises:
        BadInput: there is none, or it is not the recorded one.
    """
    locked = read_lock(root).get(EVALUATE)
    if locked is None or not matches_lock(root, locked, ANSWERS):
        raise BadInput(f"{ANSWERS}: not there as dvc.lock records it; `ratchet run --until {EVALUATE}` makes it")
    rows: dict[str, dict[str, Row]] = {}
    for row in read_jsonl(root / ANSWERS):
        if row["split"] == "test":
            rows.setdefault(row["policy"], {})[str(row["id"])] = row
    if not rows.get(BASELINE):
        raise BadInput(f"{ANSWERS}: no answers of {BASELINE} to test prompts, which every comparison needs")
    return Evaluated(locked=locked, rows=rows)


def answers_of(root: Path, entry: Version | None, evaluated: Evaluated) -> list[Answer]:
    """Return a version's answers to the test prompts, by prompt id.

    Args:
        root: the project's root.
        entry: the version; None for the sft model of the evaluation.
        evaluated: the evaluation in the work tree.

    Raises:
        BadInput: the weights are gone, or a prompt has no answer or no finite score.
        StageFailed: answers could not be generated.
    """
    if entry is None:
        return _of_rows(evaluated.rows[BASELINE], evaluated, ANSWERS)
    if evaluated.covers(entry.stage, entry.output_md5):
        return _of_rows(evaluated.rows[entry.stage], evaluated, ANSWERS)
    folder = tmp_dir(root) / "gate" / evaluated.digest(entry.stage, entry.output_md5)
    found = folder / "answers.jsonl"
    if not found.is_file():
        write_jsonl(folder / "prompts.jsonl", evaluated.prompts)
        request = Request(
            weights=str(registered_weights(root, entry.model, number=entry.version)),
            name=entry.stage,
            judge=str(root / MODELS / JUDGE),
            reference=str(root / MODELS / BASELINE),
            prompts=str(folder / "prompts.jsonl"),
            seed=evaluated.seed,
            **evaluated.decoding,
        )
        _generate(root, folder, request, entry)
    rows = {str(row["id"]): row for row in read_jsonl(found)}
    return _of_rows(rows, evaluated, str(found.relative_to(root)))


def _generate(root: Path, folder: Path, request: Request, entry: Version) -> None:
    """Run the child process that generates and scores."""
    with atomic_writer(folder / "request.json") as stream:
        stream.write(as_json(request))
    env = environment(root)
    package = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = ":".join(filter(None, [package, env.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "tasks.gate_answers", str(folder / "request.json")]
    ended = run_supervised(command, cwd=root, env=env, on_line=lambda line: None)
    if ended.exit_code:
        last = next((line for line in reversed(ended.lines) if line.strip()), "no message")
        raise StageFailed(f"gate: answers of {entry.reference} could not be generated: {last.removeprefix('error: ')}")


def _of_rows(rows: Mapping[str, Row], evaluated: Evaluated, where: str) -> list[Answer]:
    ids = evaluated.ids
    missing = [name for name in ids if name not in rows]
    if missing:
        raise BadInput(
            f"{where}: {len(missing)} of {len(ids)} test prompts have no answer, the first is {missing[0]}; remove the "
            "file, and it is made anew"
        )
    return [_answer(name, rows[name], evaluated, where) for name in ids]


def _answer(name: str, row: Row, evaluated: Evaluated, where: str) -> Answer:
    for measure in ("judge", "kl", "gold"):
        if row[measure] is not None and not math.isfinite(row[measure]):
            raise BadInput(
                f"{where}: {measure} of the answer to prompt {name} is {row[measure]}, wanted a finite number; the "
                "judge or the policy is broken, train it again"
            )
    return Answer(
        judge=float(row["judge"]),
        tokens=int(row["tokens"]),
        ended=bool(row["ended"]),
        kl=row["kl"],
        gold=row["gold"],
        repetition=repetition(str(row["response"])),
        refused=row.get("refused"),
        meta=evaluated.rows[BASELINE][name]["meta"],
    )
