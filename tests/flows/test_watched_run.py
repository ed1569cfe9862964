import os
import signal
from pathlib import Path

import pytest

from flows.errors import CommandError
from flows.run_lock import run_lock
from flows.watched_run import watched


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.watched_run.put_right", lambda root, *, local: ["an old run was ended"])
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)


def records(root: Path) -> list[str]:
    return [file.stem for file in (root / ".ratchet" / "state" / "flow-runs").glob("*.json")]


def test_a_run_is_on_record_while_it_lasts_and_can_be_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with watched(tmp_path, "mine", local=True, say=said.append) as stop:
        assert records(tmp_path) == ["mine"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.event.wait(5)
    assert records(tmp_path) == ["mine"]  # Prefect has its last state only later
    assert signal.getsignal(signal.SIGTERM) is before
    assert said == ["an old run was ended"]


def test_a_run_of_a_worker_does_not_begin_beside_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "x")
    monkeypatch.setattr("flows.watched_run.die_with_worker", lambda: True)
    begin = watched(tmp_path, "mine", local=False, say=lambda _: None)
    with run_lock(tmp_path), pytest.raises(CommandError, match="another `ratchet run` is under way"), begin:
        pytest.fail("never reached")
    assert records(tmp_path) == []


def test_what_an_old_run_left_stops_no_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(root: Path, *, local: bool) -> list[str]:
        raise ValueError("an error of ours")

    monkeypatch.setattr("flows.watched_run.put_right", broken)
    with watched(tmp_path, "mine", local=True, say=lambda _: None) as stop:
        assert not stop.event.is_set()
