"""One checkpoint as a file `STEP-HASH.safetensors`: written whole or not at all, and known by what it says of itself.

The name carries the hash of the bytes, the header (`state_file`) the stage, the key and the place among the ranks. So
a torn file is recognised, and so is one that is whole but came from elsewhere.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.state_file import read_about, read_state, write_state

SUFFIX = ".safetensors"
HASH_DIGITS = 32

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Whose state a file holds."""

    stage: str
    key: str
    world: int
    """Number of ranks."""
    rank: int


def write(folder: Path, origin: Origin, step: int, state: Mapping[str, Any], settings: str) -> Path:
    """Write the checkpoint of a step beside its place, flush it to the disk and rename it.

    Args:
        folder: made when missing.
        origin: whose state it is.
        step: number of the step that it follows.
        state: see `state_file.write_state`.
        settings: under which it was computed, as JSON; kept with it.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        left.unlink(missing_ok=True)
    temporary = folder / f".{step:09d}.tmp"
    about = {**asdict(origin), "step": step, "settings": settings}
    try:
        with temporary.open("wb") as stream:
            digest = write_state(stream, dict(state), about)
            stream.flush()
            os.fsync(stream.fileno())
        file = folder / f"{step:09d}-{digest[:HASH_DIGITS]}{SUFFIX}"
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)
    return file


def read(file: Path) -> tuple[dict[str, Any], str]:
    """The state in a file, its tensors on disk until they are looked at, and the settings that it was computed under.

    Raises:
        ValueError: the file holds no state.
    """
    return dict(read_state(file)), str(read_about(file)["settings"])


def files(folder: Path) -> list[Path]:
    """Whatever has the name of a checkpoint, of any version of this project, newest step first."""
    return sorted((file for file in folder.glob("[0-9]*-*.*") if file.is_file()), reverse=True)


def step_of(file: Path) -> int:
    """The step that a file's name says; -1 where it says none."""
    number = file.name.partition("-")[0]
    return int(number) if number.isdigit() else -1


def usable(file: Path, origin: Origin) -> bool:
    """Whether a file is whole and what `origin` wrote; reads all of it, and says in the log what is wrong with it."""
    reason = _fault(file, origin)
    if reason is not None:
        log.warning("checkpoint %s %s; passing over it", file, reason)
    return reason is None


def _fault(file: Path, origin: Origin) -> str | None:
    """What is wrong with a file."""
    if file.suffix != SUFFIX:
        return f"is a {file.suffix} file, which is not read because it can hold a pickle"
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()[:HASH_DIGITS]
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if digest != file.stem.partition("-")[2]:
        return "is torn or was changed"
    try:
        about = read_about(file)
        read_state(file)  # reads no more than where its tensors lie
    except ValueError as error:
        return str(error)
    wanted = {**asdict(origin), "step": step_of(file)}
    other = [f"{name} {about.get(name)}, wanted {value}" for name, value in wanted.items() if about.get(name) != value]
    return f"is of another run ({'; '.join(other)})" if other else None


def sync_folder(folder: Path) -> None:
    """Make a rename durable: the directory entry itself has to reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make all files below a folder durable."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path)  # a file is flushed in the same way
