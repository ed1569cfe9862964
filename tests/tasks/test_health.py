import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import health
from tests.tiny_project import spoil

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "RATCHET_ROOT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository of git and DVC with one stage."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: exec true\n    outs: [data/a]\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True, env=environment)
    return tmp_path


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers /health, and nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith("/health") else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Healthy) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()
        thread.join()


def test_git_needs_a_repository_and_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert health.git(tmp_path).state == "fail"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert health.git(tmp_path).found == "no commit yet"
    (tmp_path / "a").write_text("x")
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(tmp_path), "add", "a"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-qm", "a"], check=True)
    (tmp_path / "b").write_text("x")
    found = health.git(tmp_path)
    assert found.state == "ok"
    assert found.found.endswith(", 1 file(s) changed since")


def test_no_git_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert health.git(tmp_path).found == "not found"


# pygtrie, inside DVC, announces a change of its own to whoever uses it.
@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")
def test_dvc_reads_the_graph(project: Path) -> None:
    found = health.dvc(project)
    assert found.state == "ok"
    assert "1 stages" in found.found
    assert found.found.endswith("nothing has run yet")


def test_a_broken_graph_fails(project: Path) -> None:
    (project / "dvc.yaml").write_text(
        "stages:\n  a:\n    cmd: true\n    outs: [x]\n  b:\n    cmd: true\n    outs: [x]\n"
    )
    found = health.dvc(project)
    assert found.state == "fail"
    assert "dvc.yaml" in found.remedy


def test_without_a_remote_there_is_one_copy(project: Path) -> None:
    assert health.remote(project).state == "warn"
    (project / ".dvc" / "config").write_text("[core]\n    remote = r\n['remote \"r\"']\n    url = ssh://me:pw@host/x\n")
    found = health.remote(project)
    assert (found.state, found.found) == ("ok", "r: ssh://host/x")


def test_folders_are_written_to_and_left_clean(tmp_path: Path) -> None:
    assert health.writable(tmp_path).state == "ok"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where a folder should be")
    found = health.writable(tmp_path)
    assert found.state == "fail"
    assert found.found.startswith("data: ")


def test_a_store_that_is_not_there_yet_is_fine(tmp_path: Path) -> None:
    assert health.mlflow_store(tmp_path).state == "ok"


def test_the_sqlite_store_is_opened_and_its_lock_seen(tmp_path: Path) -> None:
    file = tmp_path / ".ratchet" / "state" / "mlflow.db"
    file.parent.mkdir(parents=True)
    with sqlite3.connect(file, isolation_level=None) as connection:
        connection.execute("CREATE TABLE a (b)")
        assert health.mlflow_store(tmp_path).state == "ok"
        connection.execute("BEGIN EXCLUSIVE")
        assert health.mlflow_store(tmp_path).state == "warn"
        connection.execute("ROLLBACK")
    connection.close()
    file.write_bytes(b"not a database at all" * 100)
    found = health.mlflow_store(tmp_path)
    assert found.state == "fail"
    assert "ratchet publish" in found.remedy


def test_an_mlflow_server_is_asked(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    assert health.mlflow_store(tmp_path).state == "ok"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    found = health.mlflow_store(tmp_path)
    assert found.state == "warn"  # training does not need it
    assert "secret" not in found.found


def test_a_prefect_server_that_is_named_must_answer(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.prefect_server().state == "ok"
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    assert health.prefect_server().found == f"server at {server}/api"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert health.prefect_server().state == "fail"


def test_settings_are_loaded_as_the_stages_will_load_them(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("\nsft:", "\nstf:", 1))
    found = health.settings(tmp_path)
    assert found.state == "fail"
    assert "unknown section stf; did you mean sft?" in found.found
    (tmp_path / "params.yaml").write_text("a: [")
    assert "not valid YAML" in health.settings(tmp_path).found


def test_the_settings_as_committed_are_valid() -> None:
    assert health.settings(ROOT).state == "ok"


def test_every_byte_of_the_cache_is_looked_at(finished_project: Path) -> None:
    found = health.cache(finished_project)
    assert (found.state, found.found) == ("ok", "4 outputs and data folders, every byte intact")
    text = (finished_project / "last.txt").read_bytes()
    for file in (finished_project / ".dvc" / "cache" / "files").rglob("*"):
        if file.is_file() and file.read_bytes() == text:
            spoil(file)
    assert health.cache(finished_project).state == "warn"  # the work tree has it
    (finished_project / "last.txt").unlink()
    found = health.cache(finished_project)
    assert found.state == "fail"
    assert "last.txt is missing or damaged" in found.found
    assert "`ratchet run` mends" in found.remedy
