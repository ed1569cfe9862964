"""What a command shows: text for people on stdout, or one JSON document, never both.

Progress and logs go to stderr, so that `ratchet X --json | jq` always works.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

Cell: TypeAlias = object
"""Anything that a table can show: text, a number, a truth value or None."""

NUMBERS = (int, float)


def show(args: argparse.Namespace, document: object, text: str | Iterable[str]) -> None:
    """Write a command's result.

    Args:
        args: the parsed command line; `args.json` decides which form is written.
        document: what `--json` prints; paths become text, NaN and infinities become null.
        text: what a person reads, as one text or as lines.
    """
    if getattr(args, "json", False):
        write_json(document)
    else:
        say(text if isinstance(text, str) else "\n".join(text))


def say(text: str) -> None:
    """Write a line (or several) for people to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a line to stderr: progress, warnings, what is not the result; a reader that has gone stops nothing."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def write_json(document: object) -> None:
    """Write one JSON document to stdout, keys in the order in which they were given."""
    sys.stdout.write(json.dumps(plain(document), ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def plain(value: object) -> object:
    """Turn a value into what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(str(item) for item in value)
    return str(value)


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]], *, indent: int = 0) -> str:
    """Lay rows out in columns: numbers to the right, everything else to the left.

    Args:
        headers: one name per column; all empty for a table without a head.
        rows: one sequence of cells per row, as long as `headers`.
        indent: spaces before every line.

    Returns:
        The lines, without a trailing newline.

    Raises:
        ValueError: a row has another number of cells than there are headers.
    """
    cells = [list(row) for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"table row {row!r} has {len(row)} cells, wanted {len(headers)}")
    right = [bool(cells) and all(row[i] is None or _is_number(row[i]) for row in cells) for i in range(len(headers))]
    head = [list(headers), ["-" * len(name) for name in headers]] if any(headers) else []
    lines = head + [[cell_text(cell) for cell in row] for row in cells]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(headers))]
    if head:
        lines[1] = ["-" * width for width in widths]
    pad = " " * indent
    padded = (
        [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ]
        for line in lines
    )
    return "\n".join((pad + "  ".join(line)).rstrip() for line in padded)


def cell_text(cell: Cell) -> str:
    """Write one cell: four significant digits for a float, `-` for nothing, yes or no for a truth value."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        if not math.isfinite(cell):
            return str(cell)
        return f"{cell:.0f}" if abs(cell) >= 10_000 else f"{cell:.4g}"
    return str(cell)


def duration(seconds: float) -> str:
    """Write a time span: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Write a number of bytes: 512 B, 4.0 kB, 1.2 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def relative(path: Path, root: Path) -> str:
    """Name a path from the project root where it lies inside, else in full."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def log_to_stderr(*, debug: bool) -> None:
    """Send the project's own log lines to stderr; called once, by the command line only."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        root.addHandler(handler)
    for name in ("flows", "tasks", "rlhf"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.INFO)


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, NUMBERS) and not isinstance(cell, bool)
