"""How long each stage took and how much memory it needed, kept outside what DVC tracks."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.settings import tmp_dir


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One execution of a stage."""

    stage: str
    seconds: float
    """Wall time, from the start of dvc to its end."""
    peak_mb: float
    """Largest resident memory of the stage's processes together, in 10**6 bytes, sampled."""
    finished: float
    """When, in seconds since 1970."""


def write_timing(root: Path, stage: str, *, seconds: float, peak_mb: float) -> Timing:
    """Record an execution that succeeded, in place of the one before it."""
    timing = Timing(stage=stage, seconds=round(seconds, 3), peak_mb=round(peak_mb, 1), finished=round(time.time(), 3))
    path = _file(root, stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(timing)) + "\n", encoding="utf-8")
    os.replace(part, path)
    return timing


def read_timing(root: Path, stage: str) -> Timing | None:
    """Return the last execution, None when there was none on this machine."""
    try:
        return Timing(**json.loads(_file(root, stage).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _file(root: Path, stage: str) -> Path:
    return tmp_dir(root) / "timings" / f"{stage}.json"
