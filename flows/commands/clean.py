"""`ratchet clean`: free what `.ratchet/tmp` holds, and unfinished copies in DVC's cache; nothing else is touched."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.output import show, size, table

ALWAYS = ("checkpoints", "logprobs", "tokens", "logs", "weights", "report")
"""Folders that are freed by default: leftovers of runs, and what is made again when needed."""

RECENT_SECONDS = 120
"""A checkpoint folder written to within this time belongs to a stage that may be running."""

LONG_SECONDS = 3600
"""An unfinished copy in the cache that nobody has written to for so long is nobody's."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "clean",
        help="free what .ratchet/tmp holds",
        description="Free leftovers in .ratchet/tmp. Data, models, the registry and .ratchet/state stay as they are; "
        "so do checkpoints from which the next run would resume.",
    )
    everything = "all of .ratchet/tmp: also checkpoints to resume from, live metrics and timings"
    parser.add_argument("--all-tmp", action="store_true", help=everything)
    parser.add_argument("--dry-run", action="store_true", help="show what would be freed and remove nothing")


def run(args: argparse.Namespace) -> int:
    """Remove what is not in use, and show it."""
    from rlhf.checkpoint import disk_use
    from tasks.settings import project_root

    root = project_root()
    rows: list[dict[str, object]] = []
    for path in (*_candidates(root / ".ratchet" / "tmp", everything=args.all_tmp), *_torn(root)):
        count = _bytes(path)
        reason = in_use(path) or (None if args.all_tmp else resumable(root, path))
        if reason is None and not args.dry_run:
            _remove(path)
        rows.append({"path": str(path.relative_to(root)), "bytes": count, "kept": reason})
    freed = sum(int(str(row["bytes"])) for row in rows if row["kept"] is None)
    verb = "would free" if args.dry_run else "freed"
    cells = [(row["path"], size(float(str(row["bytes"]))), row["kept"] or verb) for row in rows]
    text = f"{table(('path', 'size', ''), cells)}\n{verb} {size(freed)}" if rows else "nothing to free in .ratchet/tmp"
    kept = disk_use(root / ".ratchet" / "tmp" / "checkpoints")
    if kept:
        text += f"\ncheckpoints now: {', '.join(f'{stage} {size(count)}' for stage, count in kept.items())}"
    show(args, {"freed_bytes": freed, "dry_run": args.dry_run, "paths": rows, "checkpoints": kept}, text)
    return 0


def _candidates(tmp: Path, *, everything: bool) -> Iterator[Path]:
    """List what may go: per stage and key for checkpoints and live rows, whole folders otherwise."""
    if not tmp.is_dir():
        return
    for entry in sorted(tmp.iterdir()):
        if not everything and entry.name not in ALWAYS:
            continue
        if entry.is_symlink() or not entry.is_dir():
            yield entry
        elif entry.name == "checkpoints":
            yield from sorted(entry.glob("*/*"))
        elif entry.name in ("slots", "live"):
            yield from sorted(entry.iterdir())
        else:
            yield entry


def _torn(root: Path) -> Iterator[Path]:
    """List copies into DVC's cache that a killed process left unfinished; DVC names them `.SOMETHING.tmp`."""
    from rlhf.errors import BadInput
    from tasks.dvc_store import dvc_places

    try:
        cache = dvc_places(root).cache / "files" / "md5"
    except BadInput:  # `ratchet doctor` tells
        return
    for file in sorted(cache.glob("*/.*.tmp")):
        if file.is_relative_to(root) and time.time() - file.stat().st_mtime > LONG_SECONDS:
            yield file


def in_use(path: Path) -> str | None:
    """Tell why something must stay: a lock in it is held, or a running stage writes there.

    Returns:
        The reason, or None when it can go.
    """
    newest = 0.0
    for file in [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]:
        if file.is_symlink():
            continue
        if file.is_file() and _is_locked(file):
            return "kept: its lock is held"
        newest = max(newest, file.lstat().st_mtime)
    writes = path.parents[1].name == "checkpoints" or path.parent.name == "live" or path.name == "logs"
    if writes and time.time() - newest < RECENT_SECONDS:
        return "kept: a stage wrote here a moment ago"
    return None


def resumable(root: Path, path: Path) -> str | None:
    """Tell whether a checkpoint folder (`checkpoints/STAGE/KEY`) is what the stage's next run would continue from.

    Returns:
        The reason to keep it, or None.
    """
    if path.parents[1].name != "checkpoints":
        return None
    from rlhf.checkpoint_key import stage_key
    from rlhf.config import read_params
    from rlhf.errors import BadInput

    try:
        current = stage_key(path.parent.name, (), read_params(root / "params.yaml"), root)
    except BadInput:
        return "kept: params.yaml cannot be read, so what a run would resume from is unknown"
    return "kept: the next run resumes from it" if path.name == current else None


def _is_locked(file: Path) -> bool:
    """Try the lock without waiting; a lock that is free is given back at once."""
    with _opened(file) as handle:
        if handle is None:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def _opened(file: Path) -> Iterator[int | None]:
    try:
        handle = os.open(file, os.O_RDONLY)
    except OSError:  # it has gone, or is not ours to read: removing it will say so
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def _bytes(path: Path) -> int:
    """Disk space of a file or tree, bytes; a file with another hard link (DVC's cache) frees nothing."""
    files = [path] if not path.is_dir() or path.is_symlink() else path.rglob("*")
    return sum(s.st_size for s in (f.lstat() for f in files) if s.st_nlink == 1)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
