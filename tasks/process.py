"""Start a supervised child process, stream its lines, stop it when asked, and measure its memory."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import supervisor

POLL_SECONDS = 0.05
SAMPLE_SECONDS = 0.25
GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL for what is stopped; short, because all of a stage has to be gone within 10 s."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a command ended."""

    exit_code: int
    lines: tuple[str, ...]
    """Standard output and error together."""
    seconds: float
    peak_mb: float
    """Largest sum of resident memory over the command's processes, in 10**6 bytes, sampled four times a second."""
    cancelled: bool


def run_supervised(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    on_line: Callable[[str], None],
    cancelled: Callable[[], bool] = lambda: False,
    pass_fds: Sequence[int] = (),
    grace: float = GRACE_SECONDS,
) -> Ended:
    """Run a command to its end; it and all its descendants die with this process, and with this thread.

    Args:
        command: program and arguments.
        cwd: its working folder.
        env: its whole environment.
        on_line: called for each line as it comes, from another thread.
        cancelled: asked several times a second; once true, everything is stopped.
        pass_fds: open files that the command inherits.
        grace: seconds between asking and killing.
    """
    launcher = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(grace)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*launcher, *command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        pass_fds=tuple(pass_fds),
        start_new_session=True,  # a Ctrl-C at the terminal reaches us alone, and we decide
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process, lines, on_line), daemon=True)
    reader.start()
    try:
        stopped, peak = _watch(process, cancelled)
    finally:
        if process.poll() is None:  # an exception on its way through, such as Ctrl-C
            process.send_signal(signal.SIGTERM)
            process.wait()
        reader.join()
    seconds = time.monotonic() - started
    code = process.returncode
    return Ended(exit_code=code, lines=tuple(lines), seconds=seconds, peak_mb=peak, cancelled=stopped)


def resident_mb(pid: int) -> float:
    """Return the resident memory of all processes below `pid`, in 10**6 bytes; shared pages count for each."""
    total = 0
    for child in supervisor.descendants(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{child}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


def _watch(process: "subprocess.Popen[str]", cancelled: Callable[[], bool]) -> tuple[bool, float]:
    """Wait for the end; returns whether it was cancelled, and the largest resident memory in 10**6 bytes."""
    stopped, peak, sampled = False, 0.0, float("-inf")
    while process.poll() is None:
        if not stopped and cancelled():
            stopped = True
            process.send_signal(signal.SIGTERM)
        if time.monotonic() - sampled >= SAMPLE_SECONDS:
            sampled = time.monotonic()
            peak = max(peak, resident_mb(process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    return stopped, peak


def _read(process: "subprocess.Popen[str]", lines: list[str], on_line: Callable[[str], None]) -> None:
    assert process.stdout is not None  # opened as a pipe above
    with process.stdout as stream:
        for line in stream:
            text = line.rstrip("\n")
            lines.append(text)
            on_line(text)
