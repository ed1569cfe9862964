import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from flows.flow_runs import LOCAL, begin, close_dead, dead, forget_if_over
from flows.prefect_api import ServerAway, ServerRefused
from tasks.settings import state_dir

URL = "http://127.0.0.1:9/api"
GONE = json.dumps([socket.gethostname(), os.getpid(), 1.0])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A server with one task run that goes on; what it is asked."""
    said: list[str] = []

    def ask(path: str, body: Any = None, **_: Any) -> Any:
        said.append(path)
        if path == "/task_runs/filter":
            return [{"id": "t"}]
        return {"state_type": "RUNNING"}

    monkeypatch.setattr("flows.flow_runs.ask", ask)
    monkeypatch.setattr("flows.prefect_api.ask", ask)
    monkeypatch.setattr("flows.flow_runs.set_state", lambda kind, run, state, _: said.append(f"{kind} {run} {state}"))
    monkeypatch.setenv("PREFECT_API_URL", URL)
    return said


def leave(root: Path, run_id: str, server: str) -> Path:
    file = state_dir(root) / "flow-runs" / f"{run_id}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"run_id": run_id, "server": server, "owner": GONE}))
    return file


def test_the_run_of_a_living_process_is_left_alone(tmp_path: Path, asked: list[str]) -> None:
    file = begin(tmp_path, "mine", local=False)
    assert json.loads(file.read_text())["server"] == URL
    assert dead(tmp_path) == []
    assert close_dead(tmp_path, local=False) == []
    assert asked == []
    assert file.exists()


@pytest.mark.parametrize(
    ("found", "stays"),
    [("RUNNING", True), ("COMPLETED", False), (ServerAway("refused"), True), (ServerRefused("HTTP 404"), False)],
)
def test_a_record_goes_when_the_server_has_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str | Exception, stays: bool
) -> None:
    def state(_: str) -> str:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("flows.flow_runs.flow_run_state", state)
    file = leave(tmp_path, "mine", LOCAL)
    forget_if_over(tmp_path, "mine")
    assert file.exists() is stays


def test_dead_runs_of_this_server_are_closed_with_their_tasks_and_others_wait(tmp_path: Path, asked: list[str]) -> None:
    here, elsewhere = leave(tmp_path, "here", URL), leave(tmp_path, "local", LOCAL)
    (here.parent / "torn.json").write_text("{")
    assert close_dead(tmp_path, local=False) == ["here"]
    assert asked[1] == "task_runs t CRASHED"
    assert asked[-1] == "flow_runs here CRASHED"
    assert (here.exists(), elsewhere.exists()) == (False, True)
    assert close_dead(tmp_path, local=True) == ["local"]
    assert not elsewhere.exists()


@pytest.mark.parametrize(("error", "stays"), [(ServerAway("refused"), True), (ServerRefused("HTTP 404"), False)])
def test_a_server_that_is_away_is_told_later_and_one_that_forgot_never(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception, stays: bool
) -> None:
    def ask(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("flows.flow_runs.ask", ask)
    file = leave(tmp_path, "x", URL)
    assert close_dead(tmp_path, local=False) == []
    assert file.exists() is stays
    assert asked == []
