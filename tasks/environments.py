"""What stages were computed on: the records that they leave, which of them belong to an output, and what differs."""

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

from rlhf.errors import BadInput
from tasks.dvc_store import dvc_places, output_files
from tasks.lock_file import LockedStage

Environment: TypeAlias = Mapping[str, Any]
FOLDER = Path(".ratchet/tmp/environments")
"""Where `rlhf.environment_record` writes, from the project's root."""
TIES = ("stage", "key", "outputs")
"""Fields that say what a record belongs to, and nothing about the machine."""
PINS = "constraints.txt"
TAG = "ratchet.env."
TAGGED = ("cpu", "cpu_capability", "threads", "world_size", "python", "torch", "transformers", "matmul", "gpus", "cuda")
"""What is worth a tag; the whole record is an artifact."""


def stage_environment(root: Path, entry: LockedStage) -> Environment | None:
    """Return what a recorded output was computed on.

    Args:
        root: the project's root.
        entry: the stage in the lock file.

    Returns:
        None when this project has no record of it: it came from a cache or a remote, or the record was removed.
    """
    listings: dict[str, dict[str, str]] = {}
    files = sorted((root / FOLDER / entry.name).glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        outputs = found.get("outputs") if isinstance(found, dict) else None
        if isinstance(outputs, dict) and _belongs(root, entry, outputs, listings):
            return dict(found)
    return None


def _belongs(root: Path, entry: LockedStage, outputs: Mapping[str, str], listings: dict[str, dict[str, str]]) -> bool:
    """Tell whether a record's hashes are those of the output, in every file that both know, the metrics among them."""
    known = 0
    for path, md5 in outputs.items():
        folder = path.rpartition("/")[0]
        if path in entry.outs:
            recorded: str | None = entry.outs[path]
            known += 1
        elif folder in entry.outs:
            recorded = _listing(root, entry.outs[folder], folder, listings).get(path.rpartition("/")[2])
        else:  # something that the stage has read
            continue
        if recorded is not None and recorded != md5:
            return False
    return known > 0


def _listing(root: Path, md5: str, path: str, listings: dict[str, dict[str, str]]) -> dict[str, str]:
    """Return the files of an output folder with their hashes, none when the cache has not got its listing."""
    if path not in listings:
        try:
            listings[path] = output_files(dvc_places(root), md5, path)
        except BadInput:
            listings[path] = {}
    return listings[path]


def environments(root: Path, lineage: Mapping[str, LockedStage]) -> dict[str, Environment | None]:
    """Return what each stage of a lineage was computed on, as far as that is known."""
    return {name: stage_environment(root, entry) for name, entry in lineage.items()}


def environment_tags(environment: Environment | None) -> dict[str, str]:
    """Write the main facts as tags; none when nothing is known."""
    return {
        f"{TAG}{name}": value if isinstance(value, str) else ", ".join(map(str, value))
        if isinstance(value, list) else str(value)
        for name in TAGGED
        if environment is not None and (value := environment.get(name)) not in (None, [], "")
    }  # fmt: skip


def differing(recorded: Environment | None, here: Environment | None) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two environments, as name -> (recorded, here); nothing when one is unknown."""
    if recorded is None or here is None:
        return {}
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*recorded, *here} - {*TIES, "settings", "instructions"}):
        if recorded.get(name) != here.get(name):
            found[name] = (recorded.get(name), here.get(name))
    old, new = recorded.get("settings") or {}, here.get("settings") or {}
    found |= {name: (old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)}
    before, now = set(recorded.get("instructions") or ()), set(here.get("instructions") or ())
    if before != now:
        found["instructions"] = (" ".join(sorted(before - now)) or "-", " ".join(sorted(now - before)) or "-")
    return found


def pins_that_differ(constraints: str) -> dict[str, tuple[str, str | None]]:
    """Compare pinned with installed packages.

    Args:
        constraints: the text of constraints.txt.

    Returns:
        Name -> (pinned, installed); a pinned package that is not installed is None. Packages for other systems, which
        have a condition behind a semicolon, are left out, and so is what stands behind a "+" in a version.
    """
    found = {}
    for line in constraints.splitlines():
        name, equal, version = line.partition("#")[0].partition(";")[0].strip().partition("==")
        if not equal or ";" in line:
            continue
        try:
            installed: str | None = metadata.version(name.strip())
        except metadata.PackageNotFoundError:
            installed = None
        if (installed or "").partition("+")[0] != version.strip().partition("+")[0]:
            found[name.strip()] = (version.strip(), installed)
    return found
