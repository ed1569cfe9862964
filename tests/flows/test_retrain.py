"""The flow for real: a Prefect server, DVC stages as processes, the command in a process of its own."""

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.retrain import run_name
from flows.server import LocalServer
from tests.ratchet_run import ask, run, statuses, tasks_of
from tests.tiny_project import count, edit

pytest_plugins = ["tests.registry_fixtures"]


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
