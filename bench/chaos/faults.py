"""What can happen to a run: each fault strikes at a moment, says what it did, and can be taken away again."""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from bench.chaos.arena import Arena, Attempt
from bench.chaos.damage import damage, lose_some_output

Undo = Callable[[], None]
READ_ONLY = (".ratchet/tmp/checkpoints", ".ratchet/tmp/live", ".ratchet/state", ".dvc/cache", "data/models")
REFUSED_SECONDS = 30.0


@dataclass(kw_only=True)
class Struck:
    """What a fault did."""

    told: str
    undo: Undo = lambda: None
    ends_run: bool = False
    """The run has been killed; it does not end by itself."""
    wrong: list[str] = field(default_factory=list)
    """What was not as it has to be while the fault lasted."""


Fault = Callable[[Arena, Attempt, random.Random], Struck]


def kill_stage(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """SIGKILL to one process of a stage: launcher, trainer, a worker or a rank."""
    return _kill(rng, arena.find(lambda words, _: "rlhf.launch" in words and "dvc" not in words), "stage process")


def kill_rank(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """SIGKILL to one of several ranks."""
    return _kill(rng, arena.find(lambda words, env: "rlhf.launch" in words and "RANK" in env), "rank")


def kill_dvc(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """SIGKILL to dvc."""
    return _kill(rng, arena.find(lambda words, _: _is_dvc(words)), "dvc")


def kill_supervisor(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """SIGKILL to the process between the flow and dvc."""
    found = arena.find(lambda words, _: any(word.endswith("supervisor.py") for word in words) and "repro" in words)
    return _kill(rng, found, "supervisor")


def kill_prefect_server(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """SIGKILL to the Prefect server that the run has brought up."""
    return _kill(rng, arena.find(lambda words, _: _serves_prefect(words)), "Prefect server")


def kill_flow(_: Arena, attempt: Attempt, __: random.Random) -> Struck:
    """SIGKILL to `ratchet run`."""
    attempt.process.send_signal(signal.SIGKILL)
    return Struck(told="SIGKILL to ratchet run", ends_run=True)


def terminate_flow(_: Arena, attempt: Attempt, __: random.Random) -> Struck:
    """SIGTERM to `ratchet run`."""
    attempt.process.send_signal(signal.SIGTERM)
    return Struck(told="SIGTERM to ratchet run", ends_run=True)


def interrupt_flow(_: Arena, attempt: Attempt, __: random.Random) -> Struck:
    """Ctrl-C."""
    attempt.process.send_signal(signal.SIGINT)
    return Struck(told="SIGINT to ratchet run", ends_run=True)


def kill_all(arena: Arena, _: Attempt, __: random.Random) -> Struck:
    """Every process at once, as when the power goes; what was written and not flushed stays, unlike then."""
    arena.kill_everything()
    arena.kill_everything()  # those that were born meanwhile
    return Struck(told="SIGKILL to every process", ends_run=True)


def freeze(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """Everything stands still for some seconds, as on a laptop that is closed."""
    seconds, frozen = rng.uniform(3, 15), arena.processes()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in frozen:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(seconds)
    return Struck(told=f"{len(frozen)} processes frozen for {seconds:.0f} s")


def second_run(arena: Arena, attempt: Attempt, _: random.Random) -> Struck:
    """Somebody types `ratchet run` while a run is going; it has to refuse and to name the first."""
    if attempt.over():
        return Struck(told="a second ratchet run, too late")
    second = arena.run()
    code = second.wait(REFUSED_SECONDS)
    wrong = []
    if code != 1 or str(attempt.process.pid) not in second.said():
        wrong = [] if attempt.over() else [f"a second run ended with {code}: {second.said()[-300:]}"]
    return Struck(told="a second ratchet run", wrong=wrong)


def lock_mlflow(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """Somebody holds the lock of MLflow's database for longer than its clients wait."""
    seconds = rng.uniform(5, 60)
    store = sqlite3.connect(arena.root / ".ratchet/state/mlflow.db", timeout=30, check_same_thread=False)
    store.isolation_level = None
    store.execute("BEGIN EXCLUSIVE")

    def release() -> None:
        timer.cancel()
        store.close()

    timer = threading.Timer(seconds, store.close)
    timer.start()
    return Struck(told=f"MLflow's database locked for {seconds:.0f} s", undo=release)


def lock_dvc(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """Another DVC command holds the repository's lock for a while."""
    seconds = rng.uniform(2, 20)
    lock = arena.root / ".dvc/tmp/lock"
    lock.parent.mkdir(exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            time.sleep(seconds)
            break
        time.sleep(0.01)
    os.close(handle)
    return Struck(told=f"DVC's lock taken for {seconds:.0f} s")


def kill_mlflow_server(arena: Arena, attempt: Attempt, _: random.Random) -> Struck:
    """The tracking server that the run was told to use is killed; it comes back before the next run."""
    server = arena.server
    assert server is not None  # `before` has started it
    if not attempt.over():
        server.kill()
    return Struck(told="SIGKILL to the MLflow server", undo=server.start)


def fill_disk(arena: Arena, _: Attempt, __: random.Random) -> Struck:
    """Not a byte is free any more, until the run has ended."""
    ballast, over = arena.root / ".ratchet/ballast", threading.Event()

    def fill() -> None:
        with ballast.open("ab", buffering=0) as stream:
            while not over.wait(0.01):
                with contextlib.suppress(OSError):
                    while not over.is_set():
                        free = shutil.disk_usage(arena.root).free
                        stream.write(b"\1" * max(1, min(free, 2**22)))

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()

    def undo() -> None:
        over.set()
        thread.join()
        ballast.unlink()

    return Struck(told="the disk is full", undo=undo)


def read_only(arena: Arena, _: Attempt, rng: random.Random) -> Struck:
    """A folder that the run writes to can only be read, until the run has ended."""
    folder = arena.root / rng.choice(READ_ONLY)
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)

    def undo() -> None:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

    return Struck(told=f"{folder.relative_to(arena.root)} is read-only", undo=undo)


def tear_checkpoint(arena: Arena, attempt: Attempt, rng: random.Random) -> Struck:
    """Everything is killed, and the newest checkpoint is cut off, changed, or another stage's."""
    _stop(arena, attempt)
    files = [file for file in (arena.root / ".ratchet/tmp/checkpoints").rglob("[0-9]*") if file.is_file()]
    if not files:
        return Struck(told="everything killed, no checkpoint there yet", ends_run=True)
    newest = max(files, key=lambda file: (file.stat().st_mtime, file.name))
    return Struck(told=f"everything killed, {damage(newest, rng)}", ends_run=True)


def corrupt_cache(arena: Arena, attempt: Attempt, rng: random.Random) -> Struck:
    """Everything is killed, a file of DVC's cache is damaged or removed, and so is the output it belongs to."""
    _stop(arena, attempt)
    objects = [file for file in (arena.root / ".dvc/cache/files/md5").rglob("*") if file.is_file()]
    if not objects:
        return Struck(told="everything killed, nothing in the cache yet", ends_run=True)
    told = damage(rng.choice(sorted(objects)), rng)
    if rng.random() < 0.7:
        told += f"; {lose_some_output(arena, rng)}"
    return Struck(told=f"everything killed, {told}", ends_run=True)


def lose_output(arena: Arena, attempt: Attempt, rng: random.Random) -> Struck:
    """Everything is killed, and outputs of a finished stage are deleted from the work tree."""
    _stop(arena, attempt)
    return Struck(told=f"everything killed, {lose_some_output(arena, rng)}", ends_run=True)


def tear_lock_file(arena: Arena, attempt: Attempt, rng: random.Random) -> Struck:
    """Everything is killed while dvc.lock, which DVC writes in place, is half written."""
    _stop(arena, attempt)
    lock = arena.root / "dvc.lock"
    if not lock.is_file():
        return Struck(told="everything killed, no dvc.lock yet", ends_run=True)
    data = lock.read_bytes()
    lock.write_bytes(data[: rng.randrange(len(data))])
    return Struck(told="everything killed, dvc.lock cut off", ends_run=True)


def lose_tmp(arena: Arena, attempt: Attempt, _: random.Random) -> Struck:
    """Everything is killed, and somebody deletes `.ratchet/tmp`, as the documentation allows."""
    _stop(arena, attempt)
    shutil.rmtree(arena.root / ".ratchet/tmp")
    return Struck(told="everything killed, .ratchet/tmp deleted", ends_run=True)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_stage, kill_rank, kill_dvc, kill_supervisor, kill_prefect_server, kill_flow, terminate_flow,
        interrupt_flow, kill_all, freeze, second_run, lock_mlflow, lock_dvc, kill_mlflow_server, fill_disk, read_only,
        tear_checkpoint, corrupt_cache, lose_output, tear_lock_file, lose_tmp,
    )
}  # fmt: skip
NEEDS_DISK = ("fill_disk", "read_only")
REPEATABLE = ("kill_stage", "kill_dvc", "kill_flow", "terminate_flow", "kill_all", "tear_checkpoint")
"""Faults that may strike the second run of a round, too."""


def _kill(rng: random.Random, found: list[psutil.Process], what: str) -> Struck:
    if not found:
        return Struck(told=f"no {what} was there")
    victim = rng.choice(sorted(found, key=lambda process: process.pid))
    with contextlib.suppress(psutil.Error):
        victim.send_signal(signal.SIGKILL)
    return Struck(told=f"SIGKILL to a {what}")


def _stop(arena: Arena, attempt: Attempt) -> None:
    arena.kill_everything()
    attempt.process.wait()
    arena.kill_everything()


def _is_dvc(words: list[str]) -> bool:
    return "dvc" in words and "repro" in words and not any(word.endswith("supervisor.py") for word in words)


def _serves_prefect(words: list[str]) -> bool:
    server = "prefect.server.api.server:create_app" in words
    return server and not any(word.endswith("supervisor.py") for word in words)
