"""What surrounds a flow run from first to last: who may stop it, and who clears up if it is killed."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from flows import flow_runs
from flows.aftermath import guard, put_right
from flows.run_lock import run_lock
from flows.stopping import Stop, die_with_worker, stopped_by_prefect, stopped_by_signals
from tasks.live_record import lingering

log = logging.getLogger(__name__)


@contextmanager
def watched(root: Path, run_id: str, *, local: bool, say: Callable[[str], None]) -> Iterator[Stop]:
    """Surround a flow run in this process.

    Args:
        root: the project's root.
        run_id: Prefect's id of it.
        local: whether the server is our own.
        say: told what a person should know.

    Yields:
        Whether somebody asked it to stop.

    Raises:
        CommandError: a worker started it while another run is under way in this project.
    """
    stop = Stop(event=threading.Event())
    with ExitStack() as stack:
        if die_with_worker():
            stack.enter_context(run_lock(root))  # `ratchet run` holds it already
        threading.Thread(target=_clear_up, args=(root, local, say), name="aftermath", daemon=True).start()
        guarding = stack.enter_context(guard(root))
        flow_runs.begin(root, run_id, local=local)
        stack.enter_context(stopped_by_signals(stop))
        stack.enter_context(stopped_by_prefect(stop, run_id, say=say))
        try:
            yield stop
        finally:
            # The record stays until Prefect has the run's last state, which comes later than this.
            guarding.needed = lingering() or stop.interrupted


def _clear_up(root: Path, local: bool, say: Callable[[str], None]) -> None:
    """Put right what killed runs left open; beside the stages, because asking MLflow takes seconds."""
    try:
        for sentence in put_right(root, local=local):
            say(sentence)
    except Exception as error:  # no run may fail for the sake of an old one
        log.warning("what earlier runs left open could not be put right: %s: %s", type(error).__name__, error)
