"""Runs that are stopped, cancelled or killed, for real: no process, no lock, nothing that goes on running anywhere."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from flows.cli import main
from flows.server import LocalServer
from tasks.live_run import OWNER
from tasks.mlflow_store import connect, exclusive, experiment_id
from tasks.settings import state_dir
from tests.ratchet_run import ask, ended, pid_of, record_of, run, send, start, state_of, statuses, tasks_of
from tests.tiny_project import alive, edit, spoil, wait_for

pytest_plugins = ["tests.registry_fixtures"]


def left_running(root: Path, pid: int) -> str:
    """Begin an MLflow run that a process owns."""
    client = connect(root)
    name = json.dumps([socket.gethostname(), pid, psutil.Process(pid).create_time()])
    return str(client.create_run(experiment_id(client, root), tags={OWNER: name}).info.run_id)


def mlflow_status(root: Path, run_id: str) -> str:
    return str(connect(root).get_run(run_id).info.status)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_leaves_no_process(new_project: Path, server: LocalServer, number: int, code: int) -> None:
    edit(new_project, "word: one, fail: no, sleep: 0.0", "word: one, fail: no, sleep: 100.0")
    process = start(new_project, server, "--json")
    stage = pid_of(new_project, "first")
    process.send_signal(number)
    found, out, err = ended(process)
    assert found == code
    assert statuses(json.loads(out))["first"] == "stopped"
    assert "stopped; `ratchet run` goes on from the checkpoints" in err
    assert not alive(stage)


def test_a_run_cancelled_in_prefect_ends_within_seconds(new_project: Path, server: LocalServer) -> None:
    edit(new_project, "word: one, fail: no, sleep: 0.0", "word: one, fail: no, sleep: 100.0")
    process = start(new_project, server, "--json")
    stage = pid_of(new_project, "first")
    run_id = record_of(new_project, process)
    began = time.monotonic()
    send(server, f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    wait_for(lambda: not alive(stage), seconds=10)
    code, out, err = ended(process)
    assert code == 1
    assert time.monotonic() - began < 30  # the stage is long gone, and Prefect has been told
    assert statuses(json.loads(out))["first"] == "stopped"
    assert "cancelled in Prefect; `ratchet run` goes on from the checkpoints" in err
    assert state_of(server, run_id) == "CANCELLED"


def test_a_killed_run_leaves_no_process_and_nothing_running_and_a_second_run_is_refused(
    new_project: Path, server: LocalServer
) -> None:
    edit(new_project, "word: one, fail: no, sleep: 0.0", "word: one, fail: no, sleep: 100.0")
    process = start(new_project, server)
    stage = pid_of(new_project, "first")
    run_id = record_of(new_project, process)
    code, _, err = ended(start(new_project, server))
    assert code == 1
    assert f"another `ratchet run` is under way in {new_project} (process {process.pid}, since" in err
    live = left_running(new_project, process.pid)
    process.kill()
    killed = time.monotonic()
    ended(process)
    wait_for(lambda: not alive(stage), seconds=10)
    wait_for(lambda: state_of(server, run_id) == "CRASHED", seconds=10)
    wait_for(lambda: mlflow_status(new_project, live) == "KILLED", seconds=30)
    assert time.monotonic() - killed < 30  # 10 s on an idle machine
    assert {task["state_type"] for task in tasks_of(server, run_id).values()} == {"CRASHED"}
    edit(new_project, "sleep: 100.0", "sleep: 0.0")
    code, document, err = run(new_project, server)
    assert code == 0, err
    assert set(statuses(document).values()) == {"run"}


def test_what_a_power_failure_left_running_is_ended_by_the_next_run(new_project: Path, server: LocalServer) -> None:
    code, document, err = run(new_project, server, "--until", "first")
    assert code == 0, err
    run_id = document["run_id"]
    send(server, f"flow_runs/{run_id}/set_state", {"state": {"type": "RUNNING", "name": "Running"}, "force": True})
    gone = json.dumps([socket.gethostname(), os.getpid(), 1.0])  # this pid, before the machine was started
    record = {"run_id": run_id, "server": server.api_url, "owner": gone}
    (new_project / ".ratchet" / "state" / "flow-runs" / f"{run_id}.json").write_text(json.dumps(record))
    code, _, err = run(new_project, server)
    assert code == 0, err
    assert f"the flow run {run_id} was killed: marked as crashed" in err
    assert state_of(server, run_id) == "CRASHED"
    assert list((new_project / ".ratchet" / "state" / "flow-runs").iterdir()) == []


def test_publishing_can_be_stopped_and_is_caught_up_with(unpublished: Path, server: LocalServer) -> None:
    with exclusive(state_dir(unpublished) / "publish.lock"):
        process = start(unpublished, server, "--json")
        run_id = record_of(unpublished, process)
        criteria = {"flow_runs": {"id": {"any_": [run_id]}}}
        wait_for(lambda: "publish" in {task["name"] for task in ask(server, "task_runs", **criteria)}, seconds=60)
        process.terminate()
        code, _, err = ended(process)
    assert code == 143, err
    assert state_of(server, run_id) == "CANCELLED"
    assert main(["publish", "--root", str(unpublished)]) == 0


def test_a_damaged_cache_is_mended_before_dvc_relies_on_it(finished_project: Path, server: LocalServer) -> None:
    text = (finished_project / "right.txt").read_bytes()
    for file in (finished_project / ".dvc" / "cache" / "files").rglob("*"):
        if file.is_file() and file.read_bytes() == text:
            spoil(file)
    code, document, err = run(finished_project, server)
    assert code == 0, err
    assert set(statuses(document).values()) == {"cached"}
    assert "right: right.txt was missing or damaged in DVC's cache (1 of 1 files); brought back from the work" in err
    (finished_project / "right.txt").unlink()
    code, document, err = run(finished_project, server)
    assert statuses(document)["right"] == "restored"
    assert (finished_project / "right.txt").read_bytes() == text
