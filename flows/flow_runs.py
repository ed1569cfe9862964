"""Flow runs that are under way, on disk, so that a later process can end in Prefect those whose process was killed.

`.ratchet/state/flow-runs/ID.json` exists from a flow run's start to its orderly end.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.prefect_api import ServerAway, ServerRefused, ask, flow_run_state, set_state
from rlhf.outputs import atomic_writer
from tasks.owner import is_dead, owner
from tasks.settings import state_dir

LOCAL = "local"
"""Stands for the address of our own server, which has another port each time and the same database."""
CRASHED = "its process was killed; the next `ratchet run` goes on from what it had finished"
OPEN_STATES = ("RUNNING", "PENDING", "CANCELLING", "PAUSED", "SCHEDULED")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowRun:
    """One record."""

    run_id: str
    server: str
    """Address of the Prefect server that knows it, or LOCAL."""
    owner: str
    file: Path


def begin(root: Path, run_id: str, *, local: bool) -> Path:
    """Record that this process executes a flow run.

    Args:
        root: the project's root.
        run_id: Prefect's id of it.
        local: whether the server is our own.

    Returns:
        The record, to be removed when the flow run has ended in order.
    """
    file = _folder(root) / f"{run_id}.json"
    server = LOCAL if local else os.environ.get("PREFECT_API_URL", "")
    with atomic_writer(file) as stream:
        json.dump({"run_id": run_id, "server": server, "owner": owner()}, stream)
    return file


def forget_if_over(root: Path, run_id: str) -> None:
    """Remove the record of a flow run of which the server knows that it has ended, or knows nothing at all."""
    with contextlib.suppress(ServerAway):  # the next run will tell it
        if _is_over(run_id):
            (_folder(root) / f"{run_id}.json").unlink(missing_ok=True)


def dead(root: Path) -> list[FlowRun]:
    """Return the records whose process is gone."""
    return [run for run in _records(root) if is_dead(run.owner)]


def close_dead(root: Path, *, local: bool) -> list[str]:
    """Mark as crashed the flow runs whose process is gone, unless the present server knows that they had ended.

    Args:
        root: the project's root.
        local: whether PREFECT_API_URL is our own server.

    Returns:
        Ids of those that had not. A server that is away leaves the records for the next time.
    """
    here = LOCAL if local else os.environ.get("PREFECT_API_URL", "")
    closed = []
    for run in [run for run in dead(root) if run.server == here]:
        try:
            if _crash(run.run_id):
                closed.append(run.run_id)
        except ServerAway as error:
            log.info("the flow run %s cannot be marked as crashed now: %s", run.run_id, error)
            break
        except ServerRefused as error:  # the server has forgotten it, or will not let us
            log.info("the flow run %s cannot be marked as crashed: %s", run.run_id, error)
        run.file.unlink(missing_ok=True)
    return closed


def _is_over(run_id: str) -> bool:
    try:
        return flow_run_state(run_id) not in OPEN_STATES
    except ServerRefused:
        return True


def _crash(run_id: str) -> bool:
    """End a flow run and its task runs in Prefect, unless they have ended; returns whether the flow run had not."""
    wanted = {"flow_runs": {"id": {"any_": [run_id]}}}
    unfinished = {"state": {"type": {"any_": list(OPEN_STATES)}}}
    for task in ask("/task_runs/filter", {**wanted, "task_runs": unfinished}):
        set_state("task_runs", task["id"], "CRASHED", CRASHED)
    state = flow_run_state(run_id)
    if state in OPEN_STATES:
        asked = state == "CANCELLING"
        set_state("flow_runs", run_id, "CANCELLED" if asked else "CRASHED", CRASHED)
    return state in OPEN_STATES


def _records(root: Path) -> Iterator[FlowRun]:
    for file in sorted(_folder(root).glob("*.json")):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            yield FlowRun(run_id=found["run_id"], server=found["server"], owner=found["owner"], file=file)
        except (OSError, ValueError, KeyError, TypeError):  # torn by a full disk, or removed just now
            log.info("%s: not a record of a flow run", file.name)


def _folder(root: Path) -> Path:
    return state_dir(root) / "flow-runs"
