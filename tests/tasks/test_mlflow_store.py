import multiprocessing
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.mlflow_store import EXPERIMENT, StoreUnreachable, connect, exclusive, experiment_id, sqlite_file
from tasks.settings import state_dir

pytest_plugins = ["tests.registry_fixtures"]


def _use(root: str, failures: "multiprocessing.Queue[str]") -> None:
    try:
        experiment_id(connect(Path(root)), Path(root))
        failures.put("")
    except Exception as error:  # whatever it is, the other process has to hear of it
        failures.put(repr(error))


def test_two_processes_may_use_a_new_store_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failures: multiprocessing.Queue[str] = context.Queue()
    workers = [context.Process(target=_use, args=(str(tmp_path), failures)) for _ in range(2)]
    for worker in workers:
        worker.start()
    said = [failures.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert said == ["", ""]
    with sqlite3.connect(state_dir(tmp_path) / "mlflow.db") as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM experiments")]
    assert names.count(EXPERIMENT) == 1


def test_connecting_leaves_the_environment_without_an_address(unpublished: Path) -> None:
    client = connect(unpublished)
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert client.tracking_uri.endswith(".ratchet/state/mlflow.db")
    artifacts = client.get_experiment(experiment_id(client, unpublished)).artifact_location
    assert artifacts == (state_dir(unpublished) / "mlflow-artifacts").as_uri()


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    (state_dir(tmp_path) / "mlflow.db").write_bytes(b"not a database at all, just text" * 40)
    with pytest.raises(
        StoreUnreachable, match=r"MLflow at sqlite:.*mlflow\.db is not reachable: file is not a database"
    ):
        connect(tmp_path)


def test_a_password_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:" + "hunter2@127.0.0.1:9")
    with pytest.raises(StoreUnreachable) as caught:
        connect(tmp_path)
    assert "hunter2" not in str(caught.value)
    assert "me:***@127.0.0.1:9" in str(caught.value)


def test_only_sqlite_addresses_have_a_file() -> None:
    assert sqlite_file("sqlite:////a/b.db") == Path("/a/b.db")
    assert sqlite_file("http://localhost:5000") is None


def test_the_lock_is_exclusive(tmp_path: Path) -> None:
    import fcntl

    with exclusive(tmp_path / "x.lock"), (tmp_path / "x.lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_threads_may_be_the_first_to_need_it_together(tmp_path: Path) -> None:
    """Its modules import each other, so two threads in the middle of that meet half-made ones."""
    code = (
        "import sys, pathlib; from concurrent.futures import ThreadPoolExecutor\n"
        "from tasks.mlflow_store import connect, translated\n"
        "def use(number):\n"
        "    client = connect(pathlib.Path(sys.argv[1]))\n"
        "    with translated(client.tracking_uri):\n"
        "        from mlflow.entities import Metric\n"
        "        return len(client.search_experiments())\n"
        "with ThreadPoolExecutor(6) as pool: print(sum(pool.map(use, range(6))))\n"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=here, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "6"), done.stderr[-2000:]
