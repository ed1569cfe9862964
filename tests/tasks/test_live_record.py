import json
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from tasks.live_record import LINGER_SECONDS, THREAD, lingering, recorded_live
from tasks.live_run import find_runs
from tasks.mlflow_store import connect, experiment_id
from tasks.publish import publish
from tasks.settings import state_dir, tmp_dir
from tests.tiny_project import wait_for

pytest_plugins = ["tests.registry_fixtures"]

CURVE = [(1, 0.1, 0.5), (2, 0.2, 0.6), (3, 0.3, 0.7)]


def write_live(root: Path, count: int) -> None:
    path = tmp_dir(root) / "live" / "ppo" / "abc.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"step": s, "kl": kl, "score": score, "time": time.time(), "total": 3} for s, kl, score in CURVE[:count]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def locked(root: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(state_dir(root) / "mlflow.db", isolation_level=None, timeout=30)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def statuses(root: Path) -> list[str]:
    client = connect(root)
    return [run.info.status for run in find_runs(client, experiment_id(client, root), {"ratchet.stage": "ppo"})]


def test_rows_and_the_end_are_recorded(unpublished: Path) -> None:
    with recorded_live(unpublished, "ppo") as live:
        write_live(unpublished, 2)
        live.finished = True
    assert statuses(unpublished) == ["FINISHED"]
    assert not lingering()


def test_a_store_locked_in_the_middle_holds_nobody_up_and_is_caught_up_with(unpublished: Path) -> None:
    with recorded_live(unpublished, "ppo") as live:
        write_live(unpublished, 1)
        wait_for(lambda: statuses(unpublished) == ["RUNNING"])
        holder = locked(unpublished)
        write_live(unpublished, 3)
        live.finished = True
        left = time.monotonic()
    assert time.monotonic() - left < LINGER_SECONDS + 1
    assert lingering()  # its run is still open: whoever leaves now has it swept
    report = publish(unpublished)
    assert "database is locked" in str(report.waiting)
    holder.close()
    for thread in threading.enumerate():
        if thread.name.startswith(THREAD):
            thread.join(60)
    report = publish(unpublished)
    assert "ppo" in report.published
    assert report.waiting is None
    assert statuses(unpublished) == ["FINISHED"]
    client = connect(unpublished)
    (run,) = find_runs(client, experiment_id(client, unpublished), {"ratchet.stage": "ppo"})
    assert sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/kl")) == [1, 2, 3]


def test_a_fault_in_the_record_does_not_reach_the_stage(
    unpublished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("an error of ours")

    monkeypatch.setattr("tasks.live_run.follow_live", broken)
    with recorded_live(unpublished, "ppo") as live:
        live.finished = True
    assert "ppo: live metrics were not recorded: TypeError: an error of ours" in caplog.text
