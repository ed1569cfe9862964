"""The rows that a running stage writes while it runs, for the display and for MLflow.

A file may shrink: a stage that resumes cuts it to the rows its checkpoint knows.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.settings import tmp_dir

Row = dict[str, Any]
"""{"step", "time" (seconds since 1970), "total" (steps of the stage), and one number per metric}."""


def live_file(root: Path, stage: str, *, since: float = 0.0) -> Path | None:
    """Return the file of the newest key of a stage.

    Args:
        root: the project's root.
        stage: its name.
        since: only a file written at or after this time (seconds since 1970) counts.
    """
    found: list[tuple[float, Path]] = []
    for path in (tmp_dir(root) / "live" / stage).glob("*.jsonl"):
        try:
            written = path.stat().st_mtime
        except FileNotFoundError:  # replaced just now
            continue
        if written >= since:
            found.append((written, path))
    return max(found)[1] if found else None


def read_rows(path: Path) -> list[Row]:
    """Read the whole rows of a live file; the last line may still be being written."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    return [row for row in map(_parse, whole.splitlines()) if row is not None]


def latest(root: Path, stage: str, *, since: float = 0.0) -> Row | None:
    """Return the newest row of a stage, reading only the end of its file."""
    path = live_file(root, stage, since=since)
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            stream.seek(max(path.stat().st_size - 16_384, 0))
            tail = stream.read()
    except FileNotFoundError:
        return None
    for line in reversed(tail[: tail.rfind(b"\n") + 1].splitlines()):
        row = _parse(line.decode("utf-8", errors="replace"))
        if row is not None:
            return row
    return None


def follow(
    root: Path, stage: str, *, stop: Callable[[], bool], since: float = 0.0, every: float = 0.5
) -> Iterator[Row]:
    """Yield the rows of a stage as they come, then those still unread when `stop` turns true.

    Args:
        root: the project's root.
        stage: its name.
        stop: asked after every look; the stage has ended.
        since: see `live_file`.
        every: seconds between two looks.

    Yields:
        Each row once. After a file was cut, rows are yielded from the cut on: their steps come again.
    """
    path: Path | None = None
    seen = 0
    while True:
        ending = stop()  # asked before the look, so that nothing written before the end is missed
        newest = live_file(root, stage, since=since)
        if newest != path:
            path, seen = newest, 0
        if path is not None:
            rows = read_rows(path)
            seen = min(seen, len(rows))
            yield from rows[seen:]
            seen = len(rows)
        if ending:
            return
        time.sleep(every)


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None
