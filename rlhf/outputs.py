"""Reading and writing the small text files that stages exchange: JSON lines, metrics and CSV curves.

All writes go to a neighbour file first and are renamed into place, so that a reader never meets half a file.
"""

import csv
import glob
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rlhf.errors import BadInput
from rlhf.writing import writing

SIGNIFICANT_DIGITS = 6
"""Metrics and curves are rounded to this many significant digits: enough to compare, short enough to read."""


@contextmanager
def atomic_writer(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing and rename it over `path` when the block succeeds.

    Neighbours that processes left which were killed while they wrote are removed.

    Args:
        path: the file to replace; its folder is created when missing.
        mode: "w" (UTF-8 text with bare newlines) or "wb".

    Yields:
        The open temporary file. When the block raises, `path` stays as it was.

    Raises:
        OSError: with `path` as its `filename`, where the system refuses to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}-", dir=path.parent)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with writing(path):
            with os.fdopen(handle, mode, **text) as stream:  # type: ignore[call-overload]
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def folder_writer(folder: Path) -> Iterator[Path]:
    """Fill a temporary neighbour of `folder` and put it in its place when the block succeeds.

    Args:
        folder: to replace, with all that is in it.

    Yields:
        The temporary folder. When the block raises, `folder` stays as it was.

    Raises:
        OSError: with a path as its `filename`, where the system refuses to write.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.{os.getpid()}-", dir=folder.parent))
    try:
        with writing(folder, through=temporary):
            yield temporary
            temporary.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that are gone left beside a file; the number in a name is that of its process."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*"):
        number = left.name.removeprefix(f".{path.name}.").partition("-")[0]
        if number.isdigit():
            try:
                os.kill(int(number), 0)
            except ProcessLookupError:
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            except (PermissionError, OverflowError):  # somebody else's process; no process's number
                pass


def rounded(value: Any) -> Any:
    """Round every float inside nested mappings and lists to `SIGNIFICANT_DIGITS`; non-finite floats become None.

    JSON has no NaN, and a metric that could not be computed must not look like a number.
    """
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Write nested metrics as indented JSON in the order given, floats rounded."""
    with atomic_writer(path) as stream:
        json.dump(rounded(metrics), stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object a line with sorted keys; returns the number of rows."""
    count = 0
    with atomic_writer(path) as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSON lines file that an earlier stage wrote.

    Raises:
        BadInput: the file is missing or a line is not a JSON object.
    """
    require_file(path)
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.isspace():
                yield parse_row(line, path, number)


def require_file(path: Path) -> None:
    """Refuse a missing file.

    Raises:
        BadInput: nothing is there.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file; it is written by an earlier stage, so run `dvc repro` or `ratchet run`")


def parse_row(line: str | bytes, path: Path, number: int) -> dict[str, Any]:
    """The row in a line of a JSON lines file.

    Args:
        line: the line.
        path: its file, for messages.
        number: its number, for messages.

    Raises:
        BadInput: it is not a JSON object.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}:{number}: not JSON ({error.msg}); the stage that writes it must run again") from error
    if not isinstance(row, dict):
        raise BadInput(f"{path}:{number}: got a {type(row).__name__}, wanted a JSON object")
    return row


def write_csv(path: Path, rows: Sequence[Mapping[str, float | int | str]], first: Sequence[str] = ("step",)) -> None:
    """Write rows as CSV: the columns of `first`, then every other column in the order of first appearance.

    A row without a column leaves the cell empty. Floats are rounded to `SIGNIFICANT_DIGITS`.
    """
    columns = list(first)
    for row in rows:
        columns.extend(name for name in row if name not in columns)
    with atomic_writer(path) as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: float | int | str) -> float | int | str:
    if isinstance(value, float):
        return f"{value:.{SIGNIFICANT_DIGITS}g}" if math.isfinite(value) else ""
    return value
