"""Copying files into the project so that DVC tracks them: whole or not at all, and never over what would be lost."""

import filecmp
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf.errors import BadInput, StageFailed
from tasks.settings import environment

log = logging.getLogger(__name__)


def bring_in(root: Path, copies: dict[str, Path], target: Path) -> str:
    """Put copies of files in place of `target` and track it; the old content comes back when that fails.

    Args:
        root: the project.
        copies: source by its name inside the target folder; one entry named "" when the target is a file.
        target: below data/raw or data/base.

    Returns:
        "added", "replaced" or "unchanged".

    Raises:
        BadInput: something is there that DVC does not track, so that replacing it would lose it.
        StageFailed: DVC could not track the copy.
    """
    pointer = target.with_name(f"{target.name}.dvc")
    existed = target.exists()
    if existed and _same(copies, target) and pointer.exists():
        return "unchanged"
    if existed and not pointer.exists():
        raise BadInput(
            f"{target.relative_to(root)} is there already and not tracked by DVC; move it away or choose another name"
        )
    fresh, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    for leftover in (fresh, old):
        _remove(leftover)
    try:
        for inside, source in copies.items():
            place = fresh / inside if inside else fresh
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
        if existed:
            os.replace(target, old)
        os.replace(fresh, target)
        _track(root, target)
    except BaseException:
        if old.exists():
            _remove(target)
            os.replace(old, target)
        elif not existed:
            _remove(target)
        raise
    finally:
        _remove(fresh)
        _remove(old)
    return "replaced" if existed else "added"


def _same(copies: dict[str, Path], target: Path) -> bool:
    there = {""}
    if target.is_dir():
        there = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    return there == set(copies) and all(
        filecmp.cmp(source, target / inside if inside else target, shallow=False) for inside, source in copies.items()
    )


def _track(root: Path, target: Path) -> None:
    # -P keeps the project's own folders (`mlflow/`, `data/`) out of the module search path of dvc.
    line = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "add", str(target.relative_to(root))]
    ended = subprocess.run(line, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if ended.returncode:
        raise StageFailed(
            f"`dvc add {target.relative_to(root)}` failed: {_complaint(ended)}; solve that, then try again"
        )
    log.info("%s is tracked by %s.dvc", target.relative_to(root), target.name)


def _complaint(ended: "subprocess.CompletedProcess[str]") -> str:
    """The error among what DVC said; the line after it advertises a chat."""
    said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
    errors = [line.partition("ERROR: ")[2] for line in said if "ERROR: " in line]
    return (errors or said or [f"exit code {ended.returncode}"])[-1]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
