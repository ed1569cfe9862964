"""How a run is told to stop: by Ctrl-C or SIGTERM, in Prefect's pages or by its API, or by the death of its worker."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from flows.prefect_api import ServerAway, ServerRefused, flow_run_state

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOK_SECONDS = 2.0
"""Between two looks at the flow run's state; with the grace of the stages' processes it has to stay below 10 s."""
INSIST_SECONDS = 3.0
"""Between two attempts to interrupt the main thread."""
AWAY_SECONDS = 10.0
"""A server that has not answered for so long is said to be away."""
WORKER_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""Set by whatever starts a process for a flow run: a worker, or `flow.serve`."""
PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Stop:
    """Who asked the run to stop; nobody as long as `signals` is empty and `cancelled` false."""

    event: threading.Event
    """Watched by all that runs stages."""
    signals: list[int] = field(default_factory=list)
    cancelled: bool = False
    """By Prefect."""
    server_away: bool = False
    """Whether the Prefect server left the last question unanswered."""
    interrupting: bool = False
    """Past the stages nothing watches the event: the main thread is interrupted."""
    interrupted: bool = False
    """Whether it was, and may have left something half done."""
    heard: bool = False
    """Whether signals come to us; else another would end the process."""

    @contextmanager
    def interrupts(self) -> Iterator[None]:
        """Have a stop raise KeyboardInterrupt in the main thread for the length of the block; at once if it came.

        Again and again, too: an exception that comes while a library runs a callback or a finaliser is lost.
        """
        over = threading.Event()
        self.interrupting = True
        threading.Thread(target=self._insist, args=(over,), name="insist", daemon=True).start()
        try:
            if self.event.is_set():
                raise KeyboardInterrupt
            yield
        except KeyboardInterrupt:
            self.interrupted = True
            raise
        finally:
            self.interrupting = False
            over.set()

    def _insist(self, over: threading.Event) -> None:
        while not over.wait(INSIST_SECONDS):
            if self.event.is_set() and self.heard and self.interrupting:
                os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `stop`; the stages then end their processes, and the flow its tasks.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def handler(number: int, _: FrameType | None) -> None:
        if not stop.cancelled and not stop.signals:  # else it is our own, to interrupt the main thread
            stop.signals.append(number)
        stop.event.set()
        if stop.interrupting:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    stop.heard = True
    try:
        yield
    finally:
        stop.heard = False
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def stopped_by_prefect(
    stop: Stop, run_id: str, *, say: Callable[[str], None], every: float = LOOK_SECONDS
) -> Iterator[None]:
    """Look at the flow run's state every few seconds, and turn a cancellation into `stop`.

    Args:
        stop: what to set.
        run_id: the flow run.
        say: told when the server goes away and when it is back.
        every: seconds between two looks.
    """
    over = threading.Event()
    thread = threading.Thread(target=_look, args=(stop, run_id, over, say, every), name="cancellation", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _look(stop: Stop, run_id: str, over: threading.Event, say: Callable[[str], None], every: float) -> None:
    missed = 0.0
    while not over.wait(every):
        try:
            state = flow_run_state(run_id)
        except ServerAway as error:
            missed += every
            stop.server_away = True
            if missed - every < AWAY_SECONDS <= missed:
                say(f"the Prefect server does not answer ({error}); the stages go on, unrecorded there")
            continue
        except ServerRefused as error:
            log.info("cannot look whether the run is to be cancelled: %s", error)
            return
        if missed >= AWAY_SECONDS:
            say("the Prefect server answers again")
        missed, stop.server_away = 0.0, False
        if state in ("CANCELLING", "CANCELLED") and not stop.event.is_set():
            stop.cancelled = True
            stop.event.set()
            if stop.interrupting:
                os.kill(os.getpid(), signal.SIGTERM)
            return


def die_with_worker() -> bool:
    """Have the kernel send us SIGTERM when the Prefect worker that started this process dies (Linux).

    Returns:
        Whether a worker did start it.
    """
    if WORKER_VARIABLE not in os.environ:
        return False
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return True
