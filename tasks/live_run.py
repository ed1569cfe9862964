"""The MLflow run that a stage's live rows go to while it trains, and the end of such runs whose process died."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.live import follow, live_file, read_rows
from tasks.mlflow_store import StoreUnreachable, connect, experiment_id, sqlite_file, translated
from tasks.owner import is_dead, owner
from tasks.registry_config import MODEL_STAGES
from tasks.settings import tracking_uri
from tasks.stage_outputs import row_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STAGE, KEY, OUTPUT, OWNER = "ratchet.stage", "ratchet.key", "ratchet.output_md5", "ratchet.owner"
DUPLICATE = "ratchet.duplicate_of"
TRAIN = "train/"
EVERY_SECONDS = 2.0
RETRY_SECONDS = 20.0
"""Between two attempts to reach a store that is away."""
METRICS_PER_CALL = 1000
"""MLflow's limit."""

log = logging.getLogger(__name__)


def follow_live(root: Path, stage: str, *, stop: Callable[[], bool], since: float = 0.0) -> str | None:
    """Copy a stage's live rows into its MLflow run until `stop` turns true; meant for a thread of its own.

    A store that goes away is told once, and tried again now and then; what is missing in the end, `publish` fills in
    from the same file later.

    Args:
        root: the project's root.
        stage: its name; only stages that make a model have runs.
        stop: asked now and then; the stage has ended.
        since: only a live file written at or after this time (seconds since 1970) counts.

    Returns:
        Id of the run, None when there were no rows or no store.
    """
    if stage not in MODEL_STAGES:
        return None
    recorder = _Recorder(root, stage, since)
    for row in follow(root, stage, stop=stop, since=since):
        recorder.add(row)
    recorder.write()
    return recorder.run_id


class _Recorder:
    """Writes a stage's rows into its run, a few seconds' worth at a time."""

    def __init__(self, root: Path, stage: str, since: float) -> None:
        self.run_id: str | None = None
        self._root, self._stage, self._since = root, stage, since
        self._client: MlflowClient | None = None
        self._key: str | None = None  # of the live file that the run was opened for
        self._pending: list[dict[str, Any]] = []
        self._next, self._told = 0.0, False

    def add(self, row: dict[str, Any]) -> None:
        self._pending.append(row)
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        path = live_file(self._root, self._stage, since=self._since)
        if path is None or not self._pending:
            return
        try:
            if self._client is None or path.stem != self._key:
                self._client = connect(self._root)
                self._pending = read_rows(path) or self._pending
                self.run_id = open_live_run(self._client, self._root, self._stage, path.stem, self._pending[0])
                self._key = path.stem
            run_id = str(self.run_id)
            with translated(self._client.tracking_uri):
                skip = logged_steps(self._client, run_id, self._pending)
                log_rows(self._client, run_id, self._pending, skip=skip)
            self._pending, self._next = [], time.monotonic() + EVERY_SECONDS
        except StoreUnreachable as error:
            if not self._told:
                log.warning("%s: live metrics are not recorded for now: %s", self._stage, error)
            # The next attempt begins with the whole file, and leaves out what has arrived.
            self._told, self._client, self._next = True, None, time.monotonic() + RETRY_SECONDS


def open_live_run(client: MlflowClient, root: Path, stage: str, key: str, first: Mapping[str, Any]) -> str:
    """Return the run of that resume key: the one begun earlier, set running again, or a new one."""
    with translated(client.tracking_uri):
        experiment = experiment_id(client, root)
        found = find_runs(client, experiment, {STAGE: stage, KEY: key})
        mine = [run for run in found if OUTPUT not in run.data.tags and DUPLICATE not in run.data.tags]
        if mine:
            run_id = str(mine[0].info.run_id)
            client.update_run(run_id, status="RUNNING")
            client.set_tag(run_id, OWNER, owner())
            return run_id
        tags = {STAGE: stage, KEY: key, OWNER: owner(), "mlflow.source.name": f"ratchet stage {stage}"}
        start = int(float(first.get("time", time.time())) * 1000)
        return str(client.create_run(experiment, start_time=start, run_name=f"{stage}-live", tags=tags).info.run_id)


def end_live(root: Path, run_id: str | None, *, finished: bool) -> None:
    """End the run of a stage as finished or failed; without a store, `sweep_dead_runs` does it later."""
    if run_id is None:
        return
    try:
        client = connect(root)
        with translated(client.tracking_uri):
            client.set_terminated(run_id, "FINISHED" if finished else "FAILED")
    except StoreUnreachable as error:
        log.warning("%s", error)


def sweep_dead_runs(root: Path) -> list[str]:
    """End, as killed, the runs whose process on this machine is gone.

    Returns:
        Their names; none when the store cannot be reached.
    """
    try:
        client = connect(root)
        with translated(client.tracking_uri):
            experiment = experiment_id(client, root)
            running = client.search_runs([experiment], filter_string="attributes.status = 'RUNNING'")
            dead = [run for run in running if is_dead(run.data.tags.get(OWNER))]
            for run in dead:
                client.set_terminated(run.info.run_id, "KILLED")
            return [str(run.info.run_name) for run in dead]
    except StoreUnreachable as error:
        log.warning("%s", error)
        return []


def may_have_dead_runs(root: Path) -> bool:
    """Tell in milliseconds, without MLflow, whether `sweep_dead_runs` may find something.

    A database that is locked, and a server, which only MLflow can ask, may.
    """
    file = sqlite_file(tracking_uri(root))
    if file is None:
        return True
    if not file.is_file():
        return False
    try:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1.0)
    except sqlite3.Error:
        return False
    try:
        query = (
            "SELECT tags.value FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid "
            "WHERE runs.status = 'RUNNING' AND tags.key = ?"
        )
        return any(is_dead(value) for (value,) in connection.execute(query, (OWNER,)))
    except sqlite3.Error as error:
        return "locked" in str(error)
    finally:
        connection.close()


def find_runs(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[Run]:
    """Return the runs that carry all these tags, newest first."""
    condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    return list(client.search_runs([experiment], filter_string=condition, order_by=["attributes.start_time DESC"]))


def logged_steps(client: MlflowClient, run_id: str, rows: Iterable[Mapping[str, Any]]) -> set[int]:
    """Return the steps that the run already has.

    Logging a step again would add a second point to the curve, since a resumed stage writes it at another time.
    """
    first = next(iter(rows), None)
    names = row_metrics(first) if first else {}
    return {point.step for name in names for point in client.get_metric_history(run_id, metric_name(TRAIN + name))}


def log_rows(
    client: MlflowClient,
    run_id: str,
    rows: Iterable[Mapping[str, Any]],
    *,
    skip: set[int],
    timestamp: int | None = None,
) -> None:
    """Log the rows' metrics, a step never torn between two calls.

    Args:
        client: the store.
        run_id: the run.
        rows: live rows with their `time`, or rows of a curve, which has none.
        skip: steps to leave out.
        timestamp: milliseconds since 1970 for rows without a time of their own.
    """
    from mlflow.entities import Metric

    batch: list[Metric] = []
    for row in rows:
        step = int(row["step"])
        if step in skip:
            continue
        when = int(float(row["time"]) * 1000) if "time" in row else int(timestamp or 0)
        points = [Metric(metric_name(TRAIN + name), value, when, step) for name, value in row_metrics(row).items()]
        if len(batch) + len(points) > METRICS_PER_CALL:
            client.log_batch(run_id, metrics=batch)
            batch = []
        batch += points
    if batch:
        client.log_batch(run_id, metrics=batch)


def metric_name(name: str) -> str:
    """Replace what MLflow does not allow in a name."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def duplicate_runs(client: MlflowClient, experiment: str, stage: str, *, key: str, keep: str) -> None:
    """Mark other runs of the same resume key as copies of the published one."""
    for run in find_runs(client, experiment, {STAGE: stage, KEY: key}):
        if run.info.run_id != keep and OUTPUT not in run.data.tags and DUPLICATE not in run.data.tags:
            client.set_tag(run.info.run_id, DUPLICATE, keep)
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "FINISHED")
