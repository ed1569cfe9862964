"""Record a stage's live rows beside its training, which never waits for the store."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LINGER_SECONDS = 3.0
"""How long the end of a stage waits for its last rows to be recorded."""
THREAD = "live-"

log = logging.getLogger(__name__)


class LiveRun:
    """Whether the stage whose live rows are being recorded has finished."""

    finished = False


@contextmanager
def recorded_live(root: Path, name: str) -> Iterator[LiveRun]:
    """Copy the stage's live rows into its MLflow run, from a thread, for the length of the block.

    A store that is locked or slow holds nobody up: the thread goes on alone after a few seconds, and what it does not
    get done before the process ends, `publish` and the sweep of dead runs do.
    """
    state, over, since = LiveRun(), threading.Event(), time.time() - 1

    def record() -> None:
        from tasks.live_run import end_live, follow_live

        try:
            run_id = follow_live(root, name, stop=over.is_set, since=since)
            end_live(root, run_id, finished=state.finished)
        except Exception as error:  # whatever happens to the record, the training goes on
            log.warning("%s: live metrics were not recorded: %s: %s", name, type(error).__name__, error)

    thread = threading.Thread(target=record, name=f"{THREAD}{name}", daemon=True)
    thread.start()
    try:
        yield state
    finally:
        over.set()
        thread.join(LINGER_SECONDS)


def lingering() -> bool:
    """Tell whether a stage that is over still has rows to record; its run may be left open when the process ends."""
    return any(thread.name.startswith(THREAD) and thread.is_alive() for thread in threading.enumerate())
