import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows.aftermath import guard, main, put_right
from tasks.live_run import OWNER, may_have_dead_runs
from tasks.mlflow_store import connect, experiment_id
from tests.tiny_project import wait_for

pytest_plugins = ["tests.registry_fixtures"]

GONE = json.dumps([socket.gethostname(), os.getpid(), 1.0])


def left_running(root: Path) -> str:
    client = connect(root)
    return str(client.create_run(experiment_id(client, root), tags={OWNER: GONE}).info.run_id)


def status(root: Path, run_id: str) -> str:
    return str(connect(root).get_run(run_id).info.status)


def test_nothing_to_put_right_is_seen_without_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flows.aftermath import put_right\n"
        "assert put_right(Path(sys.argv[1]), local=True) == []; assert 'mlflow' not in sys.modules"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=Path(__file__).parents[2], env=env, check=True)


def test_runs_of_the_dead_are_ended(unpublished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    run_id = left_running(unpublished)
    assert may_have_dead_runs(unpublished)
    (said,) = put_right(unpublished, local=True)
    assert said.endswith("was left running by a killed process: ended")
    assert status(unpublished, run_id) == "KILLED"
    assert not may_have_dead_runs(unpublished)


def test_it_begins_when_the_process_is_gone(
    unpublished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    left_running(unpublished)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        main(unpublished, process.pid)
    assert "was left running by a killed process: ended" in capsys.readouterr().out


def test_the_guard_of_a_run_starts_it(unpublished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr("flows.aftermath.os.getpid", lambda: 2**22 - 1)  # a process that is gone
    run_id = left_running(unpublished)
    with guard(unpublished) as watching:
        watching.needed = True
    wait_for(lambda: status(unpublished, run_id) == "KILLED", seconds=60)
