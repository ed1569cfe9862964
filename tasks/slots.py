"""Who may run now: one `cpu` slot per core and one `gpu` slot per device, held as file locks.

A lock belongs to the open file, and the stage's process inherits that file: however the stage or its runner ends, the
kernel frees the slot. Slots are shared by everything that runs in the project's folder. Within one process those who
wait are served by priority, and a stage's slots can be asked for before the thread that runs it has woken up.
"""

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tasks.settings import tmp_dir

POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one stage asks for."""

    cpu: int = 1
    gpu: int = 0
    priority: float = 0.0
    """Higher goes first, in any unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Slots that are held; `files` are open file descriptors to be passed to the stage's process."""

    files: tuple[int, ...]
    gpus: tuple[int, ...]
    """Numbers of the devices."""

    def environment(self) -> dict[str, str]:
        """Return the variables that keep a stage on its devices; none where no device was leased."""
        if not self.gpus:
            return {}
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return {"CUDA_VISIBLE_DEVICES": ",".join(visible[i] if visible else str(i) for i in self.gpus)}


@dataclass(slots=True)
class _Request:
    need: Need
    order: int
    lease: Lease | None = field(default=None)


class SlotsCancelled(Exception):
    """The wait was given up because the run is being stopped."""


class Slots:
    """The slots of one project on this machine."""

    def __init__(self, root: Path, *, cpu: int | None = None, gpu: int | None = None) -> None:
        """Open the folder of lock files.

        Args:
            root: the project's root.
            cpu: number of cpu slots; by default the cores this process may use.
            gpu: number of gpu slots; by default the devices found.
        """
        self.cpu = cpu or len(os.sched_getaffinity(0))
        self.gpu = gpu_count() if gpu is None else gpu
        self._folder = tmp_dir(root) / "slots"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._requests: dict[str, _Request] = {}
        self._mutex = threading.Lock()
        self._count = 0

    def request(self, needs: Mapping[str, Need]) -> None:
        """Put stages in the queue all at once, so that the one with priority is served first."""
        with self._mutex:
            self._enqueue(needs)
            self._grant()

    def finish(self, name: str) -> None:
        """Give back what `name` holds; those who were requested before get it by priority."""
        with self._mutex:
            self._drop(name)
            self._grant()

    @contextlib.contextmanager
    def lease(self, name: str, need: Need, *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Lease]:
        """Hold the slots of a stage for the length of the block; waits until they are free.

        Args:
            name: the stage.
            need: what it asks for, capped at what there is; ignored when it was requested before.
            cancelled: asked while waiting.

        Raises:
            SlotsCancelled: `cancelled` turned true.
        """
        self.request({name: need})
        try:
            yield self._wait(name, cancelled)
        finally:
            self.finish(name)

    def close(self) -> None:
        """Give back everything, also what was requested and never used."""
        with self._mutex:
            for name in list(self._requests):
                self._drop(name)

    def _wait(self, name: str, cancelled: Callable[[], bool]) -> Lease:
        while True:
            with self._mutex:
                self._grant()
                lease = self._requests[name].lease
            if lease is not None:
                return lease
            if cancelled():
                raise SlotsCancelled(name)
            time.sleep(POLL_SECONDS)

    def _enqueue(self, needs: Mapping[str, Need]) -> None:
        for name, need in needs.items():
            if name not in self._requests:
                self._count += 1
                self._requests[name] = _Request(need=need, order=self._count)

    def _grant(self) -> None:
        waiting = [request for request in self._requests.values() if request.lease is None]
        for request in sorted(waiting, key=lambda request: (-request.need.priority, request.order)):
            request.lease = self._take(min(request.need.cpu, self.cpu), min(request.need.gpu, self.gpu))

    def _take(self, cpu: int, gpu: int) -> Lease | None:
        """Lock that many slots or none. Nothing is held while waiting, so two who wait cannot block each other."""
        held: list[int] = []
        gpus: list[int] = []
        for kind, wanted, total in (("gpu", gpu, self.gpu), ("cpu", cpu, self.cpu)):
            found = 0
            for number in range(total):
                if found == wanted:
                    break
                handle = _lock(self._folder / f"{kind}-{number}")
                if handle is not None:
                    held.append(handle)
                    found += 1
                    if kind == "gpu":
                        gpus.append(number)
            if found < wanted:
                _unlock(held)
                return None
        return Lease(files=tuple(held), gpus=tuple(gpus))

    def _drop(self, name: str) -> None:
        request = self._requests.pop(name, None)
        if request is not None and request.lease is not None:
            _unlock(request.lease.files)


def gpu_count() -> int:
    """Return the number of NVIDIA devices this process may use, without loading a library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name and name != "-1"])
    folder = Path("/proc/driver/nvidia/gpus")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _lock(path: Path) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _unlock(handles: Iterable[int]) -> None:
    for handle in handles:
        os.close(handle)
