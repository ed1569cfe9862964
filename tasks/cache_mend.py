"""Bring back what is missing or damaged in DVC's cache, before DVC relies on it."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tasks.cache_check import CacheCheck, Damage, md5_of
from tasks.dvc_store import object_path, output_files
from tasks.planned_stage import PlannedStage
from tasks.process import run_supervised
from tasks.settings import environment


def mend(
    root: Path,
    planned: Sequence[PlannedStage],
    *,
    on_line: Callable[[str], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Do what the plan says about damaged outputs.

    Objects with other bytes are removed in any case: DVC would restore them. What has no other copy is left to its
    stage, which runs again.

    Args:
        root: the project's root.
        planned: the plan; afterwards another one has to be made.
        on_line: called with each line that dvc says.
        cancelled: asked several times a second.

    Returns:
        One sentence for each output that was damaged.
    """
    hurt = [(stage.name, damage) for stage in planned for damage in stage.damage if not damage.nowhere]
    if not hurt:
        return []
    check = CacheCheck(root)
    for _, damage in hurt:
        _copy(check, root, damage)
        if damage.source != "work tree":
            _forget(check, root, damage)
    wanted = sorted({stage for stage, damage in hurt if damage.source == "remote"})
    if wanted:
        command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "fetch", *wanted]
        run_supervised(command, cwd=root, env=environment(root), on_line=on_line, cancelled=cancelled)
    said = [_told(check, root, stage, damage) for stage, damage in hurt]
    check.remember()
    return said


def _copy(check: CacheCheck, root: Path, damage: Damage) -> None:
    """Replace the damaged objects from the work tree as far as it has them; remove the others."""
    here = check.in_work_tree(damage.path, damage.md5)
    for name in damage.objects:
        place = object_path(check.places.cache, name)
        held = here.get(name)
        if held is None:
            place.unlink(missing_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(prefix=f".{name}.", suffix=".tmp", dir=place.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(held if isinstance(held, bytes) else held.read_bytes())
                    stream.flush()
                    os.fsync(stream.fileno())
                os.chmod(part, 0o444)  # as DVC keeps its objects
                os.replace(part, place)
            finally:
                Path(part).unlink(missing_ok=True)


def _told(check: CacheCheck, root: Path, stage: str, damage: Damage) -> str:
    count = f"{len(damage.objects)} of {damage.total} files"
    what = f"{stage}: {damage.path} was missing or damaged in DVC's cache ({count})"
    still = [name for name in damage.objects if not check.intact(name)]
    if not still:
        return f"{what}; brought back from the {damage.source}"
    for name in still:  # bytes that the remote had, and that are not what they should be
        object_path(check.places.cache, name).unlink(missing_ok=True)
    why = "the remote's copy is no better" if damage.source == "remote" else "there is no other copy"
    return f"{what}; {why}, so the stage runs again"


def _forget(check: CacheCheck, root: Path, damage: Damage) -> None:
    """Remove files of the work tree that were restored from damaged bytes: DVC takes them for what they were."""
    place = root / damage.path
    if place.is_file() and md5_of(place) != damage.md5:
        place.unlink()
    if place.is_dir() and damage.md5 not in damage.objects:
        wanted = output_files(check.places, damage.md5, damage.path)
        for file in place.rglob("*"):
            if file.is_file() and md5_of(file) != wanted.get(file.relative_to(place).as_posix()):
                file.unlink()
