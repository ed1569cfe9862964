"""The MLflow run that a stage's live rows go to while it trains, and the end of such runs whose process died."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.live import follow, live_file, read_rows
from tasks.mlflow_store import StoreUnreachable, connect, experiment_id, translated
from tasks.registry_config import MODEL_STAGES
from tasks.stage_outputs import row_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STAGE, KEY, OUTPUT, OWNER = "ratchet.stage", "ratchet.key", "ratchet.output_md5", "ratchet.owner"
DUPLICATE = "ratchet.duplicate_of"
TRAIN = "train/"
EVERY_SECONDS = 2.0
METRICS_PER_CALL = 1000
"""MLflow's limit."""

log = logging.getLogger(__name__)


def follow_live(root: Path, stage: str, *, stop: Callable[[], bool], since: float = 0.0) -> str | None:
    """Copy a stage's live rows into its MLflow run until `stop` turns true; meant for a thread of its own.

    Training never waits for MLflow: when the store goes away this ends with a warning, and `publish` fills the gap
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
    pending: list[dict[str, Any]] = []
    run_id, key, logged = None, None, 0.0
    try:
        for row in follow(root, stage, stop=stop, since=since):
            pending.append(row)
            path = live_file(root, stage, since=since)
            if path is None:
                continue
            if path.stem != key:
                client = connect(root)
                key = path.stem
                run_id = open_live_run(client, root, stage, key, row)
                pending = read_rows(path)
            if time.monotonic() - logged >= EVERY_SECONDS:
                with translated(client.tracking_uri):
                    log_rows(client, str(run_id), pending, skip=logged_steps(client, str(run_id), pending))
                pending, logged = [], time.monotonic()
        if run_id is not None:
            with translated(client.tracking_uri):
                log_rows(client, run_id, pending, skip=logged_steps(client, run_id, pending))
    except StoreUnreachable as error:
        log.warning("%s: live metrics are not recorded for now: %s", stage, error)
    return run_id


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
            dead = [run for run in running if _is_dead(run.data.tags.get(OWNER))]
            for run in dead:
                client.set_terminated(run.info.run_id, "KILLED")
            return [str(run.info.run_name) for run in dead]
    except StoreUnreachable as error:
        log.warning("%s", error)
        return []


def owner() -> str:
    """Name this process so that a later one can tell whether it still lives: host, pid, start time."""
    import psutil

    return json.dumps([socket.gethostname(), os.getpid(), psutil.Process().create_time()])


def _is_dead(tag: str | None) -> bool:
    """Tell whether the owner is known to be gone; somebody else's run, or another machine's, is left alone."""
    import psutil

    try:
        host, pid, started = json.loads(tag or "")
    except ValueError:
        return False
    if host != socket.gethostname():
        return False
    try:
        # A pid is used again after a while; a start time more than a second off is another process.
        return abs(psutil.Process(int(pid)).create_time() - float(started)) > 1.0
    except psutil.NoSuchProcess:
        return True


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
