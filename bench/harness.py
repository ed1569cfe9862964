"""What the benches share: running a stage in a folder of its own, numbers with intervals, tables.

A run reads the models and data of a finished project and writes nothing there. Its folder keeps `result.json`; a second
run with the same settings reads it instead of computing again.
"""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar

import yaml

from rlhf.evaluation.statistics import Interval, mean_interval
from tasks.profiles import merge, requests_of_stages

ROOT = Path(__file__).resolve().parents[1]
Job = TypeVar("Job")
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One stage with changed settings."""

    stage: str
    profile: str
    """Name under profiles/, or "" for params.yaml as it is."""
    settings: Mapping[str, Any]
    """Keys of the stage's section that differ from the profile."""
    seed: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Paths that differ from dvc.yaml's, by option, relative to the project."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What came of a run."""

    run: dict[str, Any]
    exit_code: int
    seconds: float
    """Of the wall clock, the start of Python included."""
    metrics: dict[str, Any]
    curve: list[dict[str, float]]
    message: str
    """Last line of the log of a run that failed, else empty."""


def run_stage(run: Run, folder: Path, *, project: Path = ROOT, keep: bool = False) -> Result:
    """Run a stage of a project in a folder of its own, or read what an earlier call left there.

    Args:
        run: what to run.
        folder: written: params.yaml, log.txt, result.json and, if kept, what the stage wrote.
        project: a project whose data are read.
        keep: leave models and samples in the folder.

    Returns:
        The result, also of a run that failed.
    """
    folder = folder.resolve()  # the stage runs in it
    wanted, kept = json.loads(json.dumps(asdict(run))), folder / "result.json"
    if kept.is_file():
        old = json.loads(kept.read_text(encoding="utf-8"))
        if old["run"] == wanted and (not keep or (folder / "out").is_dir()):
            return Result(**old)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    params = merge(project, run.profile).params if run.profile else _yaml(project / "params.yaml")
    unknown = sorted(set(run.settings) - set(params[run.stage]))
    if unknown:
        raise ValueError(f"{run.stage} has no settings {', '.join(unknown)}")
    params = {**params, "seed": run.seed, run.stage: {**params[run.stage], **run.settings}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    command, written = stage_command(run, folder, project, params)
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env.pop("RATCHET_KEY", None)
    started = time.monotonic()
    with (folder / "log.txt").open("wb") as log:
        ended = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    seconds = time.monotonic() - started
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    failed = ended.returncode != 0
    result = Result(
        run=wanted, exit_code=ended.returncode, seconds=round(seconds, 2),
        metrics={} if failed else json.loads(written["metrics"].read_text(encoding="utf-8")),
        curve=_live_rows(folder, run.stage) if failed or "curves" not in written else read_curve(written["curves"]),
        message=lines[-1] if failed and lines else "",
    )  # fmt: skip
    if not keep:
        shutil.rmtree(folder / "out")
        shutil.rmtree(folder / ".ratchet", ignore_errors=True)
    kept.write_text(json.dumps(asdict(result)), encoding="utf-8")
    return result


def in_parallel(function: Callable[[Job], Found], jobs: Sequence[Job], *, workers: int) -> list[Found]:
    """Apply a function to jobs, some at once, in threads; results in the order of the jobs, progress to stderr."""
    done = 0

    def one(job: Job) -> Found:
        nonlocal done
        started = time.monotonic()
        found = function(job)
        done += 1
        sys.stderr.write(f"{done}/{len(jobs)}  {time.monotonic() - started:.0f} s\n")
        return found

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, jobs))


def read_curve(path: Path) -> list[dict[str, float]]:
    """Rows of a curve that a stage wrote."""
    with path.open(encoding="utf-8", newline="") as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def tail_mean(curve: Sequence[Mapping[str, float]], name: str, *, rows: int = 3) -> float:
    """Mean of a number over the last rows of a curve; NaN where there is none."""
    values = [row[name] for row in curve[-rows:] if name in row]
    return fmean(values) if values else math.nan


def interval(values: Sequence[float], *, seed: int = 1) -> Interval:
    """Mean of independent runs with a bootstrap interval; NaN without a finite value."""
    finite = [value for value in values if math.isfinite(value)]
    return mean_interval(finite, seed=seed) if finite else Interval(math.nan, math.nan, math.nan, 0)


def spread(values: Sequence[float]) -> float:
    """Standard deviation over runs; NaN for fewer than two."""
    return stdev(values) if len(values) > 1 else math.nan


def shown(value: Interval | float, digits: int = 2) -> str:
    """A number for a table, with its interval where it has one."""
    if not isinstance(value, Interval):
        return "-" if math.isnan(value) else f"{value:.{digits}f}"
    if value.n < 2:
        return shown(value.mean, digits)
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as CSV."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def say(text: str) -> None:
    """Print."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def stage_command(
    run: Run, folder: Path, project: Path, params: Mapping[str, Any]
) -> tuple[list[str], dict[str, Path]]:
    """The stage's command with the project's inputs and the folder's outputs, and where the latter lie."""
    block, request = _yaml(project / "dvc.yaml")["stages"][run.stage], requests_of_stages(project)[run.stage]
    outs = [next(iter(out)) if isinstance(out, dict) else out for kind in ("outs", "metrics") for out in block[kind]]
    options = {name.replace("_", "-"): str(path) for name, path in request.paths.items()} | dict(run.inputs)
    words = [sys.executable, "-m", "rlhf.launch", run.stage, "--recipe", request.recipe]
    for name, source in request.borrowed.items():
        words += ["--set", f"{name}={source}"]
    written = {}
    for name, path in options.items():
        filled = path
        for section, values in params.items():
            for key, value in values.items() if isinstance(values, Mapping) else ():
                filled = filled.replace(f"${{{section}.{key}}}", str(value))
        if path in outs:
            written[name] = folder / "out" / filled
            written[name].parent.mkdir(parents=True, exist_ok=True)
        words += [f"--{name}", str(written.get(name, project / filled))]
    return words, written


def _live_rows(folder: Path, stage: str) -> list[dict[str, float]]:
    """Rows of a run that did not get to its end."""
    files = sorted((folder / ".ratchet/tmp/live" / stage).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def _yaml(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))
