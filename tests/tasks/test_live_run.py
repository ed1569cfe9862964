import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from tasks.live_run import OWNER, end_live, find_runs, follow_live, metric_name, sweep_dead_runs
from tasks.mlflow_store import connect, experiment_id
from tasks.publish import publish
from tasks.settings import tmp_dir

pytest_plugins = ["tests.registry_fixtures"]


CURVE = [(1, 0.1, 0.5), (2, 0.2, 0.6), (3, 0.3, 0.7)]


def write_live(root: Path, rows: list[tuple[int, float, float]], *, start: float, key: str = "abc") -> Path:
    path = tmp_dir(root) / "live" / "ppo" / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"step": step, "kl": kl, "score": score, "time": start + step, "total": 3})
        for step, kl, score in rows
    ]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def points(root: Path, run_id: str, name: str = "train/kl") -> list[tuple[int, float, int]]:
    return [(p.step, p.value, p.timestamp) for p in connect(root).get_metric_history(run_id, name)]


def test_live_rows_are_followed_resumed_and_adopted_without_double_points(unpublished: Path) -> None:
    # A first attempt logs two steps and dies; the second one resumes from step 1 and writes step 2 at another time.
    write_live(unpublished, CURVE[:2], start=1000.0)
    first = follow_live(unpublished, "ppo", stop=lambda: True)
    assert first is not None
    end_live(unpublished, first, finished=False)
    assert connect(unpublished).get_run(first).info.status == "FAILED"
    write_live(unpublished, CURVE, start=2000.0)
    assert follow_live(unpublished, "ppo", stop=lambda: True) == first
    expected = [(1, 0.1, 1_001_000), (2, 0.2, 1_002_000), (3, 0.3, 2_003_000)]
    assert sorted(points(unpublished, first)) == expected
    # Publishing takes over the very run.
    assert "ppo" in publish(unpublished).published
    client = connect(unpublished)
    version = client.get_model_version("policy", "2")
    assert version.run_id == first
    assert sorted(points(unpublished, first)) == expected
    run = client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == 2_003_000
    assert run.data.tags["ratchet.key"] == "abc"
    assert run.data.metrics["final/dev/loss"] == 1.25
    # Training once more with the same result makes a duplicate run, which registers nothing.
    write_live(unpublished, CURVE, start=3000.0)
    second = follow_live(unpublished, "ppo", stop=lambda: True)
    assert second not in (None, first)
    assert publish(unpublished).published == []


def test_a_thread_follows_a_growing_file(unpublished: Path) -> None:
    stop = threading.Event()
    found: list[str | None] = []
    since = time.time()
    thread = threading.Thread(
        target=lambda: found.append(follow_live(unpublished, "ppo", stop=stop.is_set, since=since - 1))
    )
    path = write_live(unpublished, CURVE[:1], start=4000.0, key="growing")
    thread.start()
    time.sleep(0.3)
    with path.open("a") as stream:
        stream.write(json.dumps({"step": 2, "kl": 0.9, "score": 0.1, "time": 4002.0, "total": 3}) + "\n")
    stop.set()
    thread.join(30)
    assert found
    assert found[0] is not None
    assert [(step, value) for step, value, _ in sorted(points(unpublished, found[0]))] == [(1, 0.1), (2, 0.9)]


def test_runs_of_dead_processes_are_ended_and_those_of_the_living_are_not(unpublished: Path) -> None:
    client = connect(unpublished)
    experiment = experiment_id(client, unpublished)
    host = socket.gethostname()

    def begin(name: str, tag: Any) -> str:
        run = client.create_run(experiment, run_name=name, tags={OWNER: json.dumps(tag), "sweep": name})
        return str(run.info.run_id)

    import psutil

    alive = begin("alive", [host, os.getpid(), psutil.Process().create_time()])
    reused = begin("reused", [host, os.getpid(), 12345.0])
    elsewhere = begin("elsewhere", ["other-machine", 1, 1.0])
    assert "reused" in sweep_dead_runs(unpublished)
    status = {name: client.get_run(run).info.status for name, run in (("a", alive), ("r", reused), ("e", elsewhere))}
    assert status == {"a": "RUNNING", "r": "KILLED", "e": "RUNNING"}
    assert find_runs(client, experiment, {"sweep": "alive"})[0].info.run_id == alive


def test_without_a_store_following_ends_and_says_nothing_worse(unpublished: Path, monkeypatch: Any) -> None:
    write_live(unpublished, CURVE, start=1.0, key="down")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert follow_live(unpublished, "ppo", stop=lambda: True) is None
    assert sweep_dead_runs(unpublished) == []


def test_stages_without_a_model_have_no_run(unpublished: Path) -> None:
    assert follow_live(unpublished, "evaluate", stop=lambda: False) is None


def test_names_become_what_mlflow_accepts() -> None:
    assert metric_name("final/win (%)") == "final/win ___"
