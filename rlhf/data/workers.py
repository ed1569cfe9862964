"""Applying a function to blocks of work in several processes, with results in the order of the blocks."""

import ctypes
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Self, TypeVar

from rlhf.errors import StageFailed

Item = TypeVar("Item")
Found = TypeVar("Found")

AHEAD = 2
"""Blocks for each process that are read before their turn: none waits, and memory stays bounded."""
FEW = 4
"""So many blocks are worked on in this process: to start others would take longer."""


class Workers:
    """Processes that are started when there is enough for them to do. A context manager: at the end they are gone."""

    def __init__(self, number: int) -> None:
        """Start nothing yet.

        Args:
            number: processes; with 1 everything is done in this one.
        """
        self.number = number
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Nothing to do yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
        """Apply a function to each item.

        Args:
            function: of a module, perhaps with some arguments bound, so that other processes find it.
            items: read as they are needed.

        Yields:
            The results in the order of the items, whatever the number of processes.

        Raises:
            StageFailed: a process was killed.
        """
        stream = iter(items)
        first = list(islice(stream, FEW + 1)) if self._pool is None else []
        if self.number == 1 or (self._pool is None and len(first) <= FEW):
            yield from map(function, chain(first, stream))
            return
        if self._pool is None:
            # Not forked: threads of numerical libraries do not survive a fork, and what they hold stays locked.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.number, context, initializer=_die_with_parent)
        waiting: deque[Future[Found]] = deque()
        try:
            for item in chain(first, stream):
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > AHEAD * self.number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise StageFailed("a process that reads data was killed, perhaps for want of memory; run again") from error


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (Linux): it would wait for work for ever."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
