"""The parent of a launcher: nothing of a stage outlives it, and it says in one sentence how the ranks ended.

It starts torchrun or the deepspeed launcher and waits. Once a rank has failed or vanished, the launcher gets a few
seconds to end the others; what is left after that (a stopped process ignores a polite signal) is killed. Where the
kernel kills this process, it kills the launcher too, and every rank watches for that by itself.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rlhf.rank_notes import FOLDER_VARIABLE, Kind, RankNote, name_ranks, read_notes

FOLDER = Path(".ratchet/tmp/ranks")
PARENT_VARIABLE = "RATCHET_PARENT"
GRACE_SECONDS = 4.0
"""Between the end of the first rank and the death of the rest, for the launcher to end them in order."""
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How a stage of several ranks ended; an empty sentence and 0 when all went well."""

    exit_code: int = 0
    kind: Kind = ""
    sentence: str = ""


class Stopped(Exception):
    """This process was told to end."""


@dataclass(slots=True)
class _Watch:
    """The ranks of this machine, as far as they are known."""

    folder: Path
    alive: dict[int, int] = field(default_factory=dict)
    """pidfd by rank."""
    known: set[int] = field(default_factory=set)
    vanished: list[int] = field(default_factory=list)
    """Ranks that ended without a word before any other had failed."""

    def look(self, seconds: float) -> None:
        """Wait for a rank to end, at most so long."""
        for note in read_notes(self.folder):
            if note.rank not in self.known:
                self.known.add(note.rank)
                with contextlib.suppress(ProcessLookupError):  # it ended already, and its note tells how
                    self.alive[note.rank] = os.pidfd_open(note.pid)
        poll = select.poll()
        for handle in self.alive.values():
            poll.register(handle, select.POLLIN)
        over = {handle for handle, _ in poll.poll(seconds * 1000)}
        ended = [rank for rank, handle in self.alive.items() if handle in over]
        for rank in ended:
            os.close(self.alive.pop(rank))
        notes = {note.rank: note for note in read_notes(self.folder)}
        if not self.vanished and not any(note.state == "failed" for note in notes.values()):
            self.vanished = [rank for rank in ended if notes[rank].state == "started"]

    def failed(self) -> bool:
        """Whether a rank failed or vanished."""
        return bool(self.vanished) or any(note.state == "failed" for note in read_notes(self.folder))

    def close(self) -> None:
        """Let go of the processes."""
        while self.alive:
            os.close(self.alive.popitem()[1])


def supervise(command: Sequence[str], environment: Mapping[str, str], *, line: str) -> Verdict:
    """Run a launcher to its end.

    Args:
        command: its program and arguments.
        environment: its environment.
        line: the launch line, for messages.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=FOLDER)).resolve()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # orphans of the launcher become ours, so that we can end them
    killed_before = _kernel_kills()
    handlers = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    ranks = _Watch(folder)
    try:
        launcher = subprocess.Popen(
            list(command),
            env={**environment, FOLDER_VARIABLE: str(folder), PARENT_VARIABLE: str(os.getpid())},
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # safe here: one thread, no locks
        )
        _wait(launcher, ranks)
        notes = read_notes(folder)
        return _verdict(notes, ranks.vanished, launcher.returncode, line, starved=_kernel_kills() > killed_before)
    except Stopped as stop:
        return Verdict(exit_code=128 + int(str(stop)))
    finally:
        end_descendants()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ranks.close()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(launcher: "subprocess.Popen[bytes]", ranks: _Watch) -> None:
    deadline = None
    while launcher.poll() is None:
        ranks.look(POLL_SECONDS)
        if deadline is None and ranks.failed():
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            end_descendants()
            launcher.wait()
    ranks.look(0)


def _verdict(notes: list[RankNote], vanished: list[int], code: int, line: str, *, starved: bool) -> Verdict:
    """The cause among all that was said: what a rank did comes before what others suffered from it."""
    failed = [note for note in notes if note.state == "failed"]
    for kind in ("bad_input", "failed"):
        for note in failed:
            if note.kind == kind:
                return Verdict(exit_code=note.exit_code, kind=kind, sentence=note.sentence)
    if vanished:
        who = name_ranks(sorted(vanished), notes[0].world)
        why = "for lack of memory, by the kernel" if starved else "from outside, or by a fault in a library"
        return Verdict(
            exit_code=1,
            kind="signal",
            sentence=f"{who} ended without a word (killed {why}), so the others were stopped; the last checkpoint is "
            "kept and the next run resumes from it"
            + ("; lower micro_batch or raise engine.zero_stage first" if starved else ""),
        )
    if failed:
        return Verdict(exit_code=failed[0].exit_code, kind="signal", sentence=failed[0].sentence)
    if notes and len(notes) == notes[0].here and all(note.state == "done" for note in notes):
        return Verdict()  # whatever happened to the processes after that
    said = f"`{line}` ended with {code} "
    if not notes:
        said += "before any rank had begun; its own message stands above, mend the launch line"
        return Verdict(exit_code=2, kind="bad_input", sentence=said)
    said += "before its ranks were done; its own message stands above, run again to resume"
    return Verdict(exit_code=1, kind="signal", sentence=said)


def end_descendants() -> None:
    """Kill all processes below this one and return when none is left."""
    while alive := descendants(os.getpid()):
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def descendants(ancestor: int) -> set[int]:
    """Process ids of all living processes below `ancestor`."""
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
            if child not in found:  # /proc is read while it changes, so a number may come back
                found.add(child)
                todo.append(child)
    return found


def _kernel_kills() -> int:
    """How often the kernel has killed a process for lack of memory since it started."""
    for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0


def _stop(number: int, _: FrameType | None) -> None:
    raise Stopped(str(number))


def die_with_supervisor() -> None:
    """Kill this rank when its supervisor has died, however far above it is; starts a thread that sleeps till then."""
    import threading

    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or sys.platform != "linux":
        return
    try:
        handle = os.pidfd_open(int(parent))
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        raise  # never reached

    def watch() -> None:
        select.select([handle], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="supervisor", daemon=True).start()
