"""Free what a killed DVC process left locked or half written, and what DVC itself would not free.

`.dvc/tmp/rwlock` lists the stages that run, by process. DVC drops entries of processes that do not exist. It does not
see that a pid has been given to another program meanwhile, as happens after a restart of the machine, and it refuses
every command once the file is torn, since it writes it in place. An entry of the run-cache that was being written when
the disk was full, or the process killed, is a temporary file that DVC takes for the newest entry; without it, the empty
folder makes every later run of that stage fail (both tried with 3.67).
"""

import fcntl
import json
import time
from pathlib import Path
from typing import Any

from tasks.dvc_store import dvc_places

FOLDER = Path(".dvc/tmp")
WAIT_SECONDS = 2.0


def mend_rwlock(root: Path) -> list[str]:
    """Remove entries of processes that are gone or are no DVC, and a file that cannot be read.

    Args:
        root: the project's root.

    Returns:
        A sentence for each thing that was removed; nothing when somebody is just writing the file.
    """
    file = root / FOLDER / "rwlock"
    if not file.is_file():
        return []
    with (root / FOLDER / "rwlock.lock").open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            readers, writers = dict(found.get("read") or {}), dict(found.get("write") or {})
            said, kept = _kept(readers, writers)
        except (ValueError, AttributeError, KeyError, TypeError):
            file.unlink()
            return [f"{FOLDER}/rwlock was torn when a process was killed, and DVC would refuse to work: removed"]
        if said:
            part = file.with_suffix(".part")
            part.write_text(json.dumps(kept), encoding="utf-8")
            part.replace(file)
    return said


def mend_run_cache(root: Path) -> list[str]:
    """Remove unfinished entries of the run-cache and the empty folders that they leave.

    Args:
        root: the project's root.

    Returns:
        A sentence if something was removed; nothing while a DVC process may be writing, or where the cache is shared
        with other projects.
    """
    runs = dvc_places(root).cache / "runs"
    if not runs.is_dir() or not runs.is_relative_to(root):
        return []
    torn = [file for file in runs.glob("*/*/.*.tmp") if file.is_file()]
    empty = [folder for folder in runs.glob("*/*") if folder.is_dir() and not any(folder.iterdir())]
    if not torn and not empty:
        return []
    with (root / FOLDER / "lock").open("a") as guard:  # who writes an entry holds the repository's lock
        if not _locked(guard.fileno()):
            return []
        for file in torn:
            file.unlink(missing_ok=True)
        for folder in {*empty, *(file.parent for file in torn)}:
            if not any(folder.iterdir()):
                folder.rmdir()
    return ["an unfinished entry of DVC's run-cache, which would stop its stage, was removed"]


def _locked(handle: int) -> bool:
    """Take a lock, waiting a little for it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def _kept(readers: dict[str, Any], writers: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Sort the entries; returns what is to be said about those that go, and the file's new content."""
    dead: dict[int, str] = {}

    def lives(info: dict[str, Any]) -> bool:
        if _is_dvc(int(info["pid"])):
            return True
        dead[int(info["pid"])] = str(info["cmd"])
        return False

    read = {path: [info for info in infos if lives(info)] for path, infos in readers.items()}
    write = {path: info for path, info in writers.items() if lives(info)}
    kept = {"read": {path: infos for path, infos in read.items() if infos}, "write": write}
    return [f"`{command}` (process {pid}) was killed: its lock was removed" for pid, command in dead.items()], kept


def _is_dvc(pid: int) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and any("dvc" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # somebody else's: leave it to DVC
        return True
