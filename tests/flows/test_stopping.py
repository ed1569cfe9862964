import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.outcome import Outcome
from flows.prefect_api import ServerAway, ServerRefused
from flows.stopping import Stop, die_with_worker, stopped_by_prefect, stopped_by_signals
from tests.tiny_project import alive, wait_for

REPOSITORY = Path(__file__).parents[2]
CHILD = (
    "import os, sys, time; from flows.stopping import die_with_worker\n"
    "print(os.getpid(), die_with_worker(), flush=True); time.sleep(60)"
)
WORKER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(60)"


def new_stop() -> Stop:
    return Stop(event=threading.Event())


def test_signals_are_turned_into_a_stop_and_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = new_stop()
    with stopped_by_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.event.wait(5)
    assert stop.signals == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
    assert Outcome(stopped_by=stop.signals[0]).exit_code == 143


def test_past_the_stages_a_signal_interrupts() -> None:
    stop = new_stop()

    def wait() -> None:
        with stop.interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)

    with stopped_by_signals(stop), pytest.raises(KeyboardInterrupt):
        wait()
    assert stop.interrupted
    assert stop.signals == [signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt), stop.interrupts():  # asked before it began
        pytest.fail("never reached")


def test_a_library_that_swallows_the_interruption_is_interrupted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stopping.INSIST_SECONDS", 0.2)
    stop, swallowed = new_stop(), []

    def wait() -> None:
        with stop.interrupts():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                threading.Event().wait(5)
            except KeyboardInterrupt:
                swallowed.append(1)
            threading.Event().wait(5)
            pytest.fail("nobody insisted")

    with stopped_by_signals(stop), pytest.raises(KeyboardInterrupt):
        wait()
    assert swallowed == [1]
    assert stop.signals == [signal.SIGTERM]


def test_in_another_thread_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop, found = new_stop(), []

    def work() -> None:
        with stopped_by_signals(stop):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


def answers(monkeypatch: pytest.MonkeyPatch, *states: str | Exception) -> None:
    """Let the server answer one after the other, the last one again and again."""
    left = list(states)

    def look(_: str) -> str:
        state = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(state, Exception):
            raise state
        return state

    monkeypatch.setattr("flows.stopping.flow_run_state", look)


@pytest.mark.parametrize("state", ["CANCELLING", "CANCELLED"])
def test_a_cancellation_in_prefect_is_seen(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "RUNNING", ServerAway("for once"), "RUNNING", state)
    stop = new_stop()
    with stopped_by_prefect(stop, "id", say=pytest.fail, every=0.01):
        assert stop.event.wait(5)
    assert stop.cancelled
    assert stop.signals == []


def test_a_cancellation_past_the_stages_interrupts_and_is_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "CANCELLING")
    stop = new_stop()

    def wait() -> None:
        with stop.interrupts(), stopped_by_prefect(stop, "id", say=pytest.fail, every=0.01):
            threading.Event().wait(5)

    with stopped_by_signals(stop), pytest.raises(KeyboardInterrupt):
        wait()
    assert stop.cancelled
    assert stop.signals == []


def test_a_server_that_is_away_and_back_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stopping.AWAY_SECONDS", 0.03)
    answers(monkeypatch, *[ServerAway("refused")] * 10, "RUNNING", "RUNNING", "CANCELLED")
    said: list[str] = []
    stop = new_stop()
    with stopped_by_prefect(stop, "id", say=said.append, every=0.01):
        assert stop.event.wait(5)
    assert said == [
        "the Prefect server does not answer (refused); the stages go on, unrecorded there",
        "the Prefect server answers again",
    ]
    assert not stop.server_away


def test_a_server_that_will_not_tell_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ServerRefused("HTTP 401"), "CANCELLED")
    stop = new_stop()
    with stopped_by_prefect(stop, "id", say=pytest.fail, every=0.01):
        assert not stop.event.wait(0.2)


def test_a_run_that_no_worker_started_dies_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    assert not die_with_worker()


def test_the_death_of_a_worker_is_the_runs(tmp_path: Path) -> None:
    env = {**os.environ, "PREFECT__FLOW_RUN_ID": "x", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", WORKER, CHILD]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pid, by_worker = worker.stdout.readline().split()
        assert json.loads(by_worker.lower())
        assert alive(int(pid))
        worker.kill()
        wait_for(lambda: not alive(int(pid)))
