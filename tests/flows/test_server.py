import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from flows.server import LocalServer, free_port, require_named_server, server_is_needed
from rlhf.errors import BadInput, StageFailed
from tests.tiny_project import alive, wait_for

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    return tmp_path


def test_a_named_server_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://somewhere/api")
    assert not server_is_needed()
    monkeypatch.delenv("PREFECT_API_URL")
    assert server_is_needed()


def test_a_named_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in (f"http://127.0.0.1:{free_port()}/api", "nonsense"):
        monkeypatch.setenv("PREFECT_API_URL", url)
        with pytest.raises(BadInput, match=f"PREFECT_API_URL={url}: no Prefect server answers"):
            require_named_server(limit=2)


def test_a_server_that_cannot_start_is_one_sentence(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "nonsense")
    with LocalServer(root) as server, pytest.raises(StageFailed, match="ended while it started") as caught:
        server.wait()
    assert "\n" not in str(caught.value)
    assert "PREFECT_API_URL" in str(caught.value)


def test_it_answers_keeps_its_files_here_and_dies_with_a_killed_parent(root: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from flows.server import LocalServer\n"
        "with LocalServer(Path(sys.argv[1])) as server:\n"
        "    server.wait(); print(server._process.pid, server.api_url, flush=True); time.sleep(60)"
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", code, root]
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        supervisor = int(pid)
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        with urllib.request.urlopen(f"{url}/admin/version", timeout=10) as answer:
            assert json.load(answer)
        parent.kill()
    assert children
    wait_for(lambda: not any(alive(process) for process in (supervisor, *map(int, children))))
    assert (root / ".ratchet" / "state" / "prefect" / "prefect.db").is_file()


def server_pid(server: LocalServer) -> int:
    """The process that answers, below its supervisor."""
    assert server._process is not None
    (child,) = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children").read_text().split()
    return int(child)


def test_a_server_that_is_killed_comes_back_with_what_it_knew_and_not_without_end(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.server.RESTARTS", 1)
    said: list[str] = []
    with LocalServer(root) as server:
        server.say = said.append
        server.wait()
        url = server.api_url
        body = json.dumps({"name": "kept"}).encode()
        request = urllib.request.Request(f"{url}/flows/", data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["name"] == "kept"
        os.kill(server_pid(server), signal.SIGKILL)
        wait_for(lambda: "the local Prefect server is back" in said, seconds=120)
        assert server.api_url == url
        with urllib.request.urlopen(f"{url}/flows/name/kept", timeout=30) as answer:
            assert json.load(answer)["name"] == "kept"
        os.kill(server_pid(server), signal.SIGKILL)
        wait_for(lambda: len(said) == 3)
    assert said[0] == "the local Prefect server was killed by signal 9; starting it again"
    assert said[2] == "the local Prefect server ended 2 times; the stages go on without it, unrecorded there"


def test_a_free_port_is_free() -> None:
    assert 1024 <= free_port() <= 65535
