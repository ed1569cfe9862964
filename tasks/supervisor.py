"""Run a command so that nothing of it outlives us: `python -I -S supervisor.py PARENT_PID GRACE COMMAND...`.

A process of its own between the runner and dvc, because a thread cannot safely set up a child before its exec. It asks
the kernel for SIGTERM when the runner dies, makes itself the foster parent of every orphan below it, and on SIGTERM, or
when the command ends, ends all descendants: first asked, after the grace period killed. Only the standard library is
imported, without `site`, so that it starts in a few hundredths of a second.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEFTOVER_GRACE = 2.0
"""Seconds that processes get which the command left behind after ending by itself."""

HANDLED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}


def descendants(ancestor: int) -> set[int]:
    """Return the ids of all processes below `ancestor`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{entry}/stat", "rb") as stream:
                # The name in brackets may hold spaces and brackets itself.
                state, parent = stream.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    children.setdefault(int(parent), []).append(int(entry))
    found: set[int] = set()
    todo = [ancestor]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def end_descendants(grace: float) -> None:
    """Ask every descendant to end, kill those that are left after `grace` seconds, and return when none is left."""
    deadline = time.monotonic() + grace
    asked: set[int] = set()
    while alive := descendants(os.getpid()):
        late = time.monotonic() >= deadline
        for pid in alive if late else alive - asked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= alive
        _reap()
        time.sleep(0.02)


def supervise(parent: int, grace: float, command: Sequence[str]) -> int:
    """Run `command` to its end or ours.

    Args:
        parent: process id of the runner; when it is not our parent, it is dead already.
        grace: seconds between asking and killing, when we are told to stop.
        command: program and arguments.

    Returns:
        The command's exit code, 128 + n when signal n ended it, 143 when we were told to stop.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        return 128 + signal.SIGTERM
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    child = os.fork()  # safe here: this process has one thread and no locks
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        try:
            os.execvp(command[0], list(command))
        except OSError as error:
            os.write(2, f"{command[0]}: {error.strerror}\n".encode())
            os._exit(127)
    while True:
        received = signal.sigwait(HANDLED)
        if received != signal.SIGCHLD:
            end_descendants(grace)
            return 128 + signal.SIGTERM
        ended = _reap()
        if child in ended:
            end_descendants(LEFTOVER_GRACE)
            code = os.waitstatus_to_exitcode(ended[child])
            return code if code >= 0 else 128 - code


def _reap() -> dict[int, int]:
    """Collect the children that have ended, as process id -> wait status."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
