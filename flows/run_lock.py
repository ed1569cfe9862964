"""One run at a time in a project: a lock that the kernel frees however the run ends."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.errors import CommandError
from tasks.settings import tmp_dir


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Who is running."""

    pid: int
    started: float
    """Seconds since 1970."""

    def __str__(self) -> str:
        """Name the holder for a person."""
        return f"process {self.pid}, since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.started))}"


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Hold the lock for the length of the block.

    Raises:
        CommandError: another run holds it; the sentence names it.
    """
    with _file(root).open("a+", encoding="utf-8") as stream:
        if not _locked(stream.fileno()):
            who = _read(root)
            raise CommandError(
                f"another `ratchet run` is under way in {root} ({who or 'it has not said which process'}); "
                "wait until it ends, or stop it, then run again",
                exit_code=1,
            )
        stream.truncate(0)
        stream.write(json.dumps({"pid": os.getpid(), "started": time.time()}))
        stream.flush()
        yield


def holder(root: Path) -> Holder | None:
    """Return who is running, None when nobody is."""
    path = _file(root)
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _read(root)
    return None


def _locked(handle: int, attempts: int = 5) -> bool:
    """Take the lock; tried a few times, because `holder` has it for an instant when it looks."""
    for attempt in range(attempts):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1 if attempt < attempts - 1 else 0.0)
    return False


def _read(root: Path) -> Holder | None:
    try:
        found = json.loads(_file(root).read_text(encoding="utf-8"))
        return Holder(pid=int(found["pid"]), started=float(found["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(root: Path) -> Path:
    return tmp_dir(root) / "run.lock"
