"""The flow for real: a Prefect server, DVC stages as processes, the command in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.retrain import Outcome, run_name, stopped_by_signals
from flows.server import LocalServer
from tests.tiny_project import alive, count, edit, wait_for

pytest_plugins = ["tests.registry_fixtures"]

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("server")
    (root / "dvc.yaml").write_text("stages: {}\n")
    with LocalServer(root) as server:
        server.wait()
        yield server


def start(root: Path, server: LocalServer, *arguments: str) -> "subprocess.Popen[str]":
    env = {**os.environ, "PREFECT_API_URL": server.api_url, "RATCHET_ROOT": str(root)}
    command = [sys.executable, "-m", "flows.cli", "run", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def run(root: Path, server: LocalServer, *arguments: str) -> tuple[int, dict[str, Any], str]:
    code, out, err = ended(start(root, server, "--json", *arguments))
    return code, json.loads(out), err


def ask(server: LocalServer, what: str, **criteria: object) -> list[dict[str, Any]]:
    body = json.dumps(criteria).encode()
    request = urllib.request.Request(
        f"{server.api_url}/{what}/filter", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: list[dict[str, Any]] = json.load(answer)
        return found


def tasks_of(server: LocalServer, run_id: str) -> dict[str, dict[str, Any]]:
    """Return the task runs of a flow run by name; events reach the database a moment later."""

    def found() -> dict[str, dict[str, Any]]:
        criteria = {"flow_runs": {"id": {"any_": [run_id]}}}
        return {task["name"]: task for task in ask(server, "task_runs", **criteria)}

    wait_for(
        lambda: bool(found()) and all(task["end_time"] or task["state_type"] == "PENDING" for task in found().values())
    )
    return found()


def statuses(document: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in document["stages"]}


def pid_of(root: Path, stage: str) -> int:
    path = root / ".ratchet" / "tmp" / f"pid-{stage}"
    wait_for(lambda: path.is_file() and path.read_text().isdigit(), seconds=60)
    return int(path.read_text())


def test_a_run_and_a_run_with_nothing_to_do(new_project: Path, server: LocalServer) -> None:
    edit(new_project, "two, fail: no, sleep: 0.0", "two, fail: no, sleep: 1.5")
    edit(new_project, "three, fail: no, sleep: 0.0", "three, fail: no, sleep: 1.5")
    code, document, err = run(new_project, server)
    assert code == 0, err
    assert statuses(document) == {"first": "run", "left": "run", "right": "run", "last": "run"}
    assert document["stages"][3]["metric"] == {"name": "accuracy", "value": 0.5}
    assert (new_project / "last.txt").read_text() == "fourtwooneraw\nthreeoneraw\n"
    assert "Flow run" not in err  # Prefect's own lines are kept off the terminal
    assert "left: run in" in err

    tasks = tasks_of(server, document["run_id"])
    assert set(tasks) == {"first", "left", "right", "last"}
    assert {task["state_name"] for task in tasks.values()} == {"Completed"}
    if len(os.sched_getaffinity(0)) > 1:  # side by side
        assert tasks["left"]["start_time"] < tasks["right"]["end_time"]
        assert tasks["right"]["start_time"] < tasks["left"]["end_time"]
    logs = ask(server, "logs", logs={"flow_run_id": {"any_": [document["run_id"]]}})
    assert {"left: begins", "right: done"} <= {log["message"] for log in logs}
    artifacts = ask(server, "artifacts", artifacts={"key": {"any_": ["retrain"]}})
    assert "| last | run |" in artifacts[0]["data"]
    heads = subprocess.run(["git", "show-ref"], cwd=new_project, capture_output=True, text=True, check=True).stdout
    assert f"{document['commit']} refs/ratchet/runs/{document['run_id']}" in heads

    code, document, err = run(new_project, server)
    assert (code, err) == (0, "")
    assert document["up_to_date"] == ["first", "left", "right", "last"]
    code, document, err = run(new_project, server, "--flow")
    assert code == 0, err
    assert set(statuses(document).values()) == {"cached"}
    states = {task["state_name"] for task in tasks_of(server, document["run_id"]).values()}
    assert states == {"Cached"}
    assert [count(new_project, name) for name in ("first", "left", "right", "last")] == [1, 1, 1, 1]


def test_one_branch_fails_and_the_other_is_finished(finished_project: Path, server: LocalServer) -> None:
    edit(finished_project, "word: two", "word: TWO")
    edit(finished_project, "word: three, fail: no", "word: three, fail: bad_input")
    code, document, err = run(finished_project, server)
    assert code == 2
    assert statuses(document) == {"first": "cached", "left": "run", "right": "failed", "last": "not reached"}
    assert "error: right: raw.txt: wrong" in err
    assert "Traceback" not in err
    assert count(finished_project, "right") == 2  # once before, once now: bad input is not tried again
    flow_run = ask(server, "flow_runs", flow_runs={"id": {"any_": [document["run_id"]]}})[0]
    assert flow_run["state_type"] == "FAILED"


def test_a_killed_stage_is_tried_again(new_project: Path, server: LocalServer) -> None:
    edit(new_project, "word: one, fail: no", "word: one, fail: kill_once")
    code, document, err = run(new_project, server, "--until", "left")
    assert code == 0, err
    assert statuses(document) == {"first": "run", "left": "run"}
    assert count(new_project, "first") == 2


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


def test_a_killed_run_leaves_no_process_and_a_second_run_is_refused(new_project: Path, server: LocalServer) -> None:
    edit(new_project, "word: one, fail: no, sleep: 0.0", "word: one, fail: no, sleep: 100.0")
    process = start(new_project, server)
    stage = pid_of(new_project, "first")
    code, _, err = ended(start(new_project, server))
    assert code == 1
    assert f"another `ratchet run` is under way in {new_project} (process {process.pid}, since" in err
    process.kill()
    ended(process)
    wait_for(lambda: not alive(stage))


def test_what_was_made_is_published_and_promoted_once_mlflow_is_there(
    unpublished: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    code, document, err = run(unpublished, server)
    assert code == 0, err  # the training is done, whatever becomes of the record
    assert "127.0.0.1:9" in document["waiting"]
    assert document["champion"] is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    code, document, err = run(unpublished, server)
    assert code == 0, err
    assert set(statuses(document).values()) == {"cached"}
    assert set(document["published"]) == {"sft", "judge", "ppo", "evaluate"}
    assert document["gate"]["promoted"]
    assert document["champion"] == "policy/2"
    assert {"publish", "gate"} <= set(tasks_of(server, document["run_id"]))


@pytest.mark.parametrize(("until", "ending"), [(None, ""), ("left", " until left")])
def test_a_flow_run_is_named_by_its_start_and_its_end(
    until: str | None, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.retrain.flow_run", SimpleNamespace(get_parameters=lambda: {"until": until}))
    assert re.fullmatch(rf"retrain \d{{4}}-\d\d-\d\d \d\d:\d\d{ending}", run_name())


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stopping = threading.Event()
    with stopped_by_signals(stopping) as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.wait(5)
    assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
    assert Outcome(stopped_by=received[0]).exit_code == 143
