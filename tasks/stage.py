"""Run one stage through DVC, as a process that can be stopped and that never outlives its runner."""

import contextlib
import dataclasses
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.dvc_locks import mend_run_cache, mend_rwlock
from tasks.failures import Failure, Kind, StageError, forget_failure, read_failure
from tasks.lock_mend import keep_copy, mend_torn_lock
from tasks.process import Ended, run_supervised
from tasks.settings import environment, project_root
from tasks.timings import write_timing

Status = Literal["run", "restored", "cached"]
"""run: the command was executed. restored: DVC put earlier outputs back. cached: nothing had to be done."""

BUSY = "is busy, it is being blocked by"
NO_LOCK = "Unable to acquire lock"
BUSY_SECONDS = 900.0
"""How long a stage waits for another DVC process that holds its files."""
LONGEST_PAUSE = 10.0
HINTS = (
    "To track the changes with git",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
    "Updating lock file",
    "Generating lock file",
    "Data and pipelines are up to date",
)
"""Lines with which DVC advises a person at a terminal; nobody is there."""
KILLED_RANK = re.compile(r"exitcode\s*:\s*-\d+|Signal \d+ \(SIG\w+\) received")
STORAGE_WORDS = ("No space left", "Read-only file system", "Permission denied", "Disk quota")
STORAGE_CURE = "free space or rights, then run again"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """How a stage ended well."""

    name: str
    status: Status
    seconds: float
    peak_mb: float


def run_stage(
    name: str,
    *,
    on_line: Callable[[str], None],
    root: Path | None = None,
    force: bool = False,
    cancelled: Callable[[], bool] = lambda: False,
    pass_fds: Sequence[int] = (),
    extra_env: Mapping[str, str] | None = None,
    busy_seconds: float = BUSY_SECONDS,
) -> StageResult:
    """Bring one stage up to date; its upstream stages are not looked at.

    Args:
        name: the stage, as in dvc.yaml.
        on_line: called with each line of output, from another thread.
        root: the project's root, found if None.
        force: execute it whatever its state.
        cancelled: asked several times a second; once true, all its processes are ended.
        pass_fds: open files that its process inherits, such as slots.
        extra_env: variables on top of `tasks.settings.environment`.
        busy_seconds: how long to wait for another DVC process that holds its files.

    Raises:
        StageError: it did not finish; says whether another attempt may help.
    """
    root = root or project_root()
    command = [*_dvc(), "repro", "--single-item", *(["--force"] if force else []), name]
    env = {**environment(root), **(extra_env or {})}
    deadline = time.monotonic() + busy_seconds
    pause = 0.5
    while True:
        forget_failure(root, name)
        for sentence in (*mend_rwlock(root), *mend_run_cache(root)):
            on_line(sentence)
        ended = run_supervised(
            command, cwd=root, env=env, on_line=_without_hints(on_line), cancelled=cancelled, pass_fds=pass_fds
        )
        if ended.exit_code == 0:
            return _finished(root, name, ended)
        with contextlib.suppress(OSError):  # a full disk cuts it off and is still full: the next run mends it
            mend_torn_lock(root)
        failure = explain(root, name, ended)
        if failure.kind == "busy" and _ran(name, ended) and _salvage(root, name, env, on_line):
            return _finished(root, name, ended)
        if failure.kind != "busy" or time.monotonic() >= deadline:
            raise StageError(failure)
        on_line(f"{name}: waiting, {failure.sentence}")
        if _pause(pause, cancelled):
            raise StageError(Failure(stage=name, exit_code=1, kind="cancelled", sentence="was stopped while it waited"))
        pause = min(pause * 2, LONGEST_PAUSE)


def explain(root: Path, name: str, ended: Ended) -> Failure:
    """Find out why a stage failed: from the note its process left, else from what DVC said."""

    def failure(kind: Kind, sentence: str, exit_code: int = 1) -> Failure:
        return Failure(stage=name, exit_code=exit_code, kind=kind, sentence=sentence)

    if ended.cancelled:
        return failure("cancelled", "was stopped")
    note = read_failure(root, name)
    if note is not None:
        return _with_cure(note)
    text = "\n".join(ended.lines)
    complaint = " ".join(text.rpartition("ERROR: ")[2].split()).removeprefix(f"failed to reproduce '{name}': ")
    if BUSY in text or NO_LOCK in text:
        return failure("busy", complaint)
    if not _ran(name, ended):
        if 128 < ended.exit_code < 128 + signal.NSIG:
            return failure("signal", f"its dvc process was killed by {_signal(ended.exit_code - 128)}")
        if any(words in text for words in STORAGE_WORDS):
            return failure("failed", f"DVC could not write: {complaint}; {STORAGE_CURE}")
        return failure("bad_input", complaint or "DVC refused it without a word", exit_code=2)
    return _command_failed(failure, text, complaint, ended)


def _with_cure(note: Failure) -> Failure:
    """Say what to do about a full disk that a library reported in words of its own."""
    told = STORAGE_CURE in note.sentence or not any(words in note.sentence for words in STORAGE_WORDS)
    return note if told else dataclasses.replace(note, sentence=f"{note.sentence}; {STORAGE_CURE}")


def _command_failed(failure: Callable[..., Failure], text: str, complaint: str, ended: Ended) -> Failure:
    found = re.search(r"exited with (-?\d+)", complaint)
    code = int(found.group(1)) if found else ended.exit_code
    number = -code if code < 0 else code - 128
    if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGBUS, signal.SIGSEGV):
        hint = "; the usual reason is too little memory" if number == signal.SIGKILL else ""
        return failure("signal", f"was killed by {_signal(number)}{hint}")
    if KILLED_RANK.search(text):
        return failure("signal", "lost one of its processes to a signal")
    if not found:  # the command ended well, what DVC did afterwards failed
        return failure("failed", f"its outputs could not be recorded: {complaint}")
    said = [line for line in text.rpartition("ERROR: ")[0].splitlines() if line.strip()]
    return failure("failed", f"exited with {code}: {said[-1].strip()}" if said else f"exited with {code}")


def _without_hints(on_line: Callable[[str], None]) -> Callable[[str], None]:
    def passed_on(line: str) -> None:
        if line.strip() and not line.startswith(HINTS):
            on_line(line)

    return passed_on


def _dvc() -> list[str]:
    # -P keeps the project's own folders (`mlflow/`, `data/`) out of the module search path of dvc.
    return [sys.executable, "-P", "-m", "dvc", "--wait-for-lock"]


def _ran(name: str, ended: Ended) -> bool:
    return any(line.startswith(f"Running stage '{name}'") for line in ended.lines)


def _finished(root: Path, name: str, ended: Ended) -> StageResult:
    status: Status = "cached"
    if _ran(name, ended):
        status = "run"
        write_timing(root, name, seconds=ended.seconds, peak_mb=ended.peak_mb)
    elif any(line.startswith(f"Stage '{name}' is cached") for line in ended.lines):
        status = "restored"
    if status != "cached":
        keep_copy(root)
    return StageResult(name=name, status=status, seconds=ended.seconds, peak_mb=ended.peak_mb)


def _salvage(root: Path, name: str, env: Mapping[str, str], on_line: Callable[[str], None]) -> bool:
    """Record the outputs of a command that finished when only DVC's lock could not be had afterwards.

    Without it, the next attempt would delete them and train again. A command that failed leaves a note, or leaves an
    output missing, which `dvc commit` refuses.
    """
    ended = run_supervised([*_dvc(), "commit", "--force", name], cwd=root, env=env, on_line=on_line)
    if ended.exit_code == 0:
        on_line(f"{name}: finished, and recorded once the lock of DVC was free")
    return ended.exit_code == 0


def _pause(seconds: float, cancelled: Callable[[], bool]) -> bool:
    """Wait; returns whether the run was cancelled meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if cancelled():
            return True
        time.sleep(0.05)
    return False


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
