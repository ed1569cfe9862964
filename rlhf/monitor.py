"""Numbers of a running stage: live rows with their time for whoever watches, clock-free rows for the curve DVC keeps.

Live rows go to `.ratchet/tmp/live/STAGE/KEY.jsonl`, where the progress display and MLflow follow them. The curve is
written once, at the end, and holds no clock, so that equal runs give equal files.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf.checkpoint import KEY_VARIABLE
from rlhf.outputs import atomic_writer, write_csv
from rlhf.writing import writing

FOLDER = Path(".ratchet/tmp/live")
LOG_EVERY_SECONDS = 5.0

log = logging.getLogger(__name__)


class Monitor:
    """Collects one row of metrics per logged step."""

    def __init__(self, stage: str, total: int) -> None:
        """Start with no rows; an old live file of the same key is emptied.

        Args:
            stage: name of the stage.
            total: number of steps that a whole run has.
        """
        self.stage, self.total = stage, total
        self.rows: list[dict[str, float]] = []
        key = os.environ.get(KEY_VARIABLE)
        writes = key is not None and os.environ.get("RANK", "0") == "0"
        self._file = FOLDER / stage / f"{key}.jsonl" if writes else None
        self._started = self._logged = time.monotonic()
        self._first_step = 0
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.touch()

    def log(self, step: int, **metrics: float) -> None:
        """Record the metrics of `step` (counted from 1 or 0, rising); a sentence goes to the log every few seconds."""
        row = {"step": step, **{name: float(value) for name, value in metrics.items()}}
        self.rows.append(row)
        now = time.monotonic()
        if self._file is not None:
            # The first row replaces those of an attempt that left no checkpoint.
            with writing(self._file), self._file.open("w" if len(self.rows) == 1 else "a", encoding="utf-8") as stream:
                stream.write(self._live(row))
        if now - self._logged >= LOG_EVERY_SECONDS or step >= self.total:
            self._logged = now
            done = max(step - self._first_step, 1)
            left = (now - self._started) / done * max(self.total - step, 0)
            shown = "  ".join(f"{name} {value:.4g}" for name, value in list(row.items())[1:6])
            log.info("%s %d/%d  %s  %.0f s left", self.stage, step, self.total, shown, left)

    def restore(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Continue after the rows of a checkpoint; live rows beyond them are cut off."""
        self.rows = [dict(row) for row in rows]
        self._first_step = int(self.rows[-1]["step"]) if self.rows else 0
        if self._file is not None and self._file.is_file():
            lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines[: len(self.rows)] if line.endswith("\n")]
            # A machine that lost its power may have kept the checkpoint and lost rows: they get today's clock.
            lost = [self._live(row) for row in self.rows[len(kept) :]]
            with atomic_writer(self._file) as stream:
                stream.writelines([*kept, *lost])

    def _live(self, row: Mapping[str, float]) -> str:
        return json.dumps({**row, "time": time.time(), "total": self.total}) + "\n"

    def write_curve(self, path: Path) -> None:
        """Write all rows as the CSV that `dvc plots` shows."""
        write_csv(path, self.rows)
