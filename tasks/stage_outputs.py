"""What there is to publish: the trained models that dvc.lock records and whose metrics lie in the work tree."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from rlhf.outputs import SIGNIFICANT_DIGITS, read_jsonl
from tasks.live import read_rows
from tasks.lock_file import LockedStage
from tasks.registry_config import MODEL_STAGES
from tasks.settings import tmp_dir

MODELS = "data/models/"
EVALUATE = "evaluate"
CLOCK = ("time", "total", "step")
"""Columns of a live row that are not metrics."""


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """One trained model."""

    root: Path
    stage: str
    md5: str
    """DVC's hash of the model folder."""
    locked: LockedStage

    @property
    def key(self) -> str:
        """Name of the output in the ledger: the same bytes made by two stages are two outputs."""
        return f"{self.stage}:{self.md5}"

    @property
    def short(self) -> str:
        """The hash as people read it."""
        return self.md5[:8]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Final metrics by `group/name`."""
        return dict(flat_numbers(read_json(self.root / f"data/metrics/{self.stage}.json")))

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """Rows of the clock-free curve; empty when its file is not the recorded one."""
        path = f"data/curves/{self.stage}.csv"
        if not matches_lock(self.root, self.locked, path):
            return []
        with (self.root / path).open(encoding="utf-8", newline="") as stream:
            return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(stream)]

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Sample answers; empty for a stage that writes none."""
        path = f"data/samples/{self.stage}.jsonl"
        return list(read_jsonl(self.root / path)) if matches_lock(self.root, self.locked, path) else []

    @cached_property
    def live(self) -> tuple[str, list[dict[str, Any]]] | None:
        """Key and rows of the live file that this output's curve was made from, None when it is gone."""
        folder = tmp_dir(self.root) / "live" / self.stage
        newest_first = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in newest_first:
            rows = read_rows(path)
            if same_rows(rows, self.curve):
                return path.stem, rows
        return None

    @property
    def data(self) -> dict[str, str]:
        """Hash by path of what it was trained on, models left out."""
        return {
            path: md5
            for path, md5 in self.locked.deps.items()
            if path.startswith("data/") and not path.startswith(MODELS)
        }

    @property
    def parents(self) -> dict[str, str]:
        """Hash of each model it was made from, by the stage that made that."""
        return {path.removeprefix(MODELS): md5 for path, md5 in self.locked.deps.items() if path.startswith(MODELS)}

    @property
    def code(self) -> str:
        """One hash over the source files it was made by; 32 hexadecimal digits."""
        sources = {path: md5 for path, md5 in self.locked.deps.items() if not path.startswith("data/")}
        return hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class EvaluationOutput:
    """What the evaluation found about the policies it looked at."""

    md5: str
    """DVC's hash of its metrics file."""
    policies: Mapping[str, str]
    """Hash of each policy's folder, by stage."""
    report: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name of the evaluation in the ledger: it belongs to these policies and to no others."""
        return f"{EVALUATE}:{self.md5}:" + ",".join(f"{stage}={md5}" for stage, md5 in sorted(self.policies.items()))


def model_outputs(root: Path, lock: Mapping[str, LockedStage]) -> list[StageOutput]:
    """List the trained models, parents first.

    A stage whose metrics are absent or not the recorded ones is running or was edited, and is left out.
    """
    found = []
    for stage in MODEL_STAGES:
        locked = lock.get(stage)
        md5 = locked.outs.get(MODELS + stage) if locked else None
        if locked is not None and md5 and matches_lock(root, locked, f"data/metrics/{stage}.json"):
            found.append(StageOutput(root=root, stage=stage, md5=md5, locked=locked))
    return found


def evaluation_output(root: Path, lock: Mapping[str, LockedStage]) -> EvaluationOutput | None:
    """Return the recorded evaluation, None when there is none or its file is not the recorded one."""
    locked, path = lock.get(EVALUATE), f"data/metrics/{EVALUATE}.json"
    if locked is None or not matches_lock(root, locked, path):
        return None
    policies = {
        dep.removeprefix(MODELS): md5
        for dep, md5 in locked.deps.items()
        if dep.startswith(MODELS) and dep.removeprefix(MODELS) in ("sft", "ppo", "dpo")
    }
    return EvaluationOutput(md5=locked.outs[path], policies=policies, report=read_json(root / path))


def matches_lock(root: Path, locked: LockedStage, path: str) -> bool:
    """Tell whether a small output file has the bytes that dvc.lock recorded."""
    recorded = locked.outs.get(path)
    if recorded is None or not (root / path).is_file():
        return False
    with (root / path).open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() == recorded


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that a stage wrote.

    Raises:
        BadInput: it is not one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error}); run its stage again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{path}: got a {type(value).__name__}, wanted a JSON object; run its stage again")
    return value


def flat_numbers(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested mapping as `outer/inner`, in its order; texts and nulls are left out."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from flat_numbers(item, f"{prefix}{name}/")
        elif isinstance(item, int | float):
            yield f"{prefix}{name}", float(item)


def row_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a live row or curve row, without its clock."""
    return {name: float(value) for name, value in row.items() if name not in CLOCK and isinstance(value, int | float)}


def same_rows(live: list[dict[str, Any]], curve: list[dict[str, float]]) -> bool:
    """Tell whether a curve was written from these live rows: equal steps, equal values at the curve's precision."""
    if len(live) != len(curve) or not curve:
        return False
    for left, right in zip(
        (live[0], live[len(live) // 2], live[-1]), (curve[0], curve[len(curve) // 2], curve[-1]), strict=True
    ):
        if int(left["step"]) != int(right["step"]):
            return False
        metrics = row_metrics(left)
        for name, value in row_metrics(right).items():
            if name not in metrics or float(f"{metrics[name]:.{SIGNIFICANT_DIGITS}g}") != value:
                return False
    return True
