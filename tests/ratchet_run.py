"""`ratchet run` in a process of its own against a Prefect server, and questions to that server, for tests."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from flows.server import LocalServer
from tests.tiny_project import wait_for

REPOSITORY = Path(__file__).parents[1]


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


def send(server: LocalServer, what: str, body: object) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.api_url}/{what}", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["status"] == "ACCEPT"


def state_of(server: LocalServer, run_id: str) -> str:
    (found,) = ask(server, "flow_runs", flow_runs={"id": {"any_": [run_id]}})
    return str(found["state_type"])


def record_of(root: Path, process: "subprocess.Popen[str]") -> str:
    """Wait for the flow run to begin and return its id."""
    folder = root / ".ratchet" / "state" / "flow-runs"
    wait_for(lambda: any(folder.glob("*.json")) or process.poll() is not None, seconds=60)
    assert process.poll() is None, process.communicate()
    return next(folder.glob("*.json")).stem


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
