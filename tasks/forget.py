"""Remove rows from raw data as a new version, and keep a record of it that does not repeat what was removed."""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rlhf.data.raw_files import files_in, unread
from rlhf.errors import BadInput, StageFailed
from tasks.commit_sources import pointed
from tasks.forget_rows import FoundRows, Wanted, find_rows, write_without
from tasks.forget_versions import RAW, Affected, affected_versions
from tasks.history import now, who
from tasks.ingest import GENERATED
from tasks.settings import state_dir, tmp_dir
from tasks.tracked_copy import bring_in

FILE = "forgotten.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """What was found, and removed unless it was only asked."""

    dry_run: bool
    removed: Mapping[str, int]
    """Rows by raw file, relative to data/raw."""
    left: Mapping[str, int]
    """Rows that these files have afterwards."""
    unreadable: int
    """Rows that are no JSON, which were kept and have to be looked at by a person."""
    not_found: tuple[str, ...]
    """Ids that no row has."""
    versions: list[Affected]


def forget(root: Path, wanted: Wanted, *, name: str | None, reason: str, dry_run: bool = False) -> Forgotten:
    """Remove rows from what `ratchet ingest` has brought in.

    Args:
        root: the project's root.
        wanted: which rows.
        name: only in this file or folder, as `ingest --as` named it; None looks through all.
        reason: for the record.
        dry_run: find and tell, and change nothing.

    Raises:
        BadInput: no such data, no such row, generated data, or a file would have no row left.
        StageFailed: DVC could not track the new version; what was there before is back in place.
    """
    if not reason.strip():
        raise BadInput("forget: the reason is empty, wanted a sentence for the record")
    targets = _targets(root, name)
    found = {target: _look(target, wanted) for target in targets}
    hits = {target: files for target, files in found.items() if any(rows.numbers for rows in files.values())}
    if not hits:
        where = ", ".join(target.name for target in targets)
        by_id = f"the id {' or '.join(sorted(wanted.ids))}"
        asked = by_id if wanted.field is None else f"{wanted.field}={wanted.value}"
        raise BadInput(f"forget: no row has {asked} (looked in {where}); check it, or name other data with --as")
    for target, files in hits.items():
        _refuse_empty(target, files)
    # Looked for before anything changes: the present version of a file is one that versions were trained on.
    present: dict[str, set[str]] = {}
    for rows in (rows for files in hits.values() for rows in files.values()):
        for prompt, answers in rows.contents.items():
            present.setdefault(prompt, set()).update(answers)
    versions = affected_versions(root, [target.name for target in hits], wanted, present)
    for target, files in hits.items() if not dry_run else ():
        before = _pointer_hash(root, target)
        _replace(root, target, files)
        _record(root, wanted, target, files, reason=reason, before=before)
    flat = {(target, file): rows for target, files in hits.items() for file, rows in files.items() if rows.numbers}
    ids = {one for rows in flat.values() for one in rows.ids}
    return Forgotten(
        dry_run=dry_run,
        removed={_name(root, file): len(rows.numbers) for (_, file), rows in flat.items()},
        left={_name(root, file): rows.total - len(rows.numbers) for (_, file), rows in flat.items()},
        unreadable=sum(rows.unreadable for files in found.values() for rows in files.values()),
        not_found=tuple(sorted(wanted.ids - ids)) if wanted.field is None else (),
        versions=versions,
    )


def _targets(root: Path, name: str | None) -> list[Path]:
    """Return the files and folders in data/raw that have a pointer."""
    folder = root / RAW
    tracked = [pointer.with_suffix("") for pointer in sorted(folder.glob("*.dvc"))]
    if name is None:
        if not tracked:
            raise BadInput(
                f"forget: {RAW} holds nothing that `ratchet ingest` brought in, and the rows of {GENERATED} are "
                "generated; bring data in first"
            )
        chosen = tracked
    else:
        short = name.rstrip("/").removeprefix(RAW)
        if short == GENERATED or short.startswith(f"{GENERATED}/"):
            raise BadInput(
                f"forget: {RAW}{GENERATED} is made by the stage generate, which would write the rows again; change its "
                "parameters instead"
            )
        chosen = [path for path in tracked if short in (path.name, path.name.split(".")[0])]
        if not chosen:
            known = ", ".join(path.name for path in tracked) or "none"
            raise BadInput(f"forget: {RAW} has no data of the name {short!r}; brought in were {known}")
    absent = [path.name for path in chosen if not path.exists()]
    if absent:
        raise BadInput(f"forget: {RAW}{absent[0]} is not here; `dvc checkout {RAW}{absent[0]}.dvc` restores it")
    return chosen


def _look(target: Path, wanted: Wanted) -> dict[Path, FoundRows]:
    return {file: find_rows(file, wanted) for file in files_in(target)}


def _refuse_empty(target: Path, files: Mapping[Path, FoundRows]) -> None:
    for file, rows in files.items():
        if rows.numbers and len(rows.numbers) == rows.total:
            raise BadInput(
                f"forget: not one of the {rows.total} rows of {RAW}{file.relative_to(target.parent)} would be left; "
                f"take it out of validate.files in params.yaml and remove it with `dvc remove {RAW}{target.name}.dvc`"
            )


def _replace(root: Path, target: Path, files: Mapping[Path, FoundRows]) -> None:
    """Write the new version beside the old one and have DVC track it."""
    with tempfile.TemporaryDirectory(prefix="forget-", dir=tmp_dir(root)) as scratch:
        copies: dict[str, Path] = {}
        present = [path for path in target.rglob("*") if path.is_file()] if target.is_dir() else [target]
        for number, file in enumerate(present):
            inside = file.relative_to(target).as_posix() if target.is_dir() else ""
            copies[inside] = file
            if file in files and files[file].numbers:
                copies[inside] = Path(scratch) / str(number)
                write_without(file, copies[inside], files[file].numbers)
                _verify(copies[inside], files[file])
        bring_in(root, copies, target)


def _verify(path: Path, rows: FoundRows) -> None:
    """Count again before the old file is replaced."""
    left = sum(1 for _ in unread(path))
    if left != rows.total - len(rows.numbers):
        raise StageFailed(
            f"forget: {left} rows would be left of {rows.total} less {len(rows.numbers)}; nothing changed"
        )


def _pointer_hash(root: Path, target: Path) -> str:
    pointer = target.with_name(f"{target.name}.dvc")
    entries = dict(pointed(pointer.relative_to(root).as_posix(), pointer.read_bytes()))
    return next(iter(entries.values()), "")


def _record(
    root: Path, wanted: Wanted, target: Path, files: Mapping[Path, FoundRows], *, reason: str, before: str
) -> None:
    """Add a line that names rows by hashes only, and have it on the disk before returning."""
    rows = {one for found in files.values() for one in found.ids}
    by_field = wanted.field is not None
    asked: dict[str, Any] = {"field": wanted.field, "value_sha256": _hash(wanted.value)} if by_field else {}
    line = {
        "time": now(),
        "who": who(),
        "data": target.name,
        "reason": " ".join(reason.split()),
        "rows": sum(len(found.numbers) for found in files.values()),
        "ids_sha256": sorted(map(_hash, rows)),
        **asked,
        "old": before,
        "new": _pointer_hash(root, target),
    }
    with (state_dir(root) / FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _name(root: Path, file: Path) -> str:
    return file.relative_to(root / RAW).as_posix()
