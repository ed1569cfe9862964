import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.prefect_api import ask
from flows.server import LocalServer
from tasks.history import read_moves
from tasks.settings import environment

pytest_plugins = ["tests.registry_fixtures"]
REPOSITORY = Path(__file__).parents[2]


def prefect(root: Path, server: LocalServer, *words: str, but: str = "") -> str:
    env = environment(root) | {"PREFECT_API_URL": server.api_url, "PYTHONPATH": str(REPOSITORY)}
    env["PWD"] = str(REPOSITORY)  # as the user's shell says it, which the pull step of the deployment takes
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *words],
        cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0 or (but and but in said), said[-3000:]
    return said


def test_a_person_approves_in_prefects_page_and_a_worker_does_it(
    published: Path, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", server.api_url)
    prefect(published, server, "work-pool", "create", "ratchet", "--type", "process")
    # Prefect 3.8 with the pinned FastAPI makes the deployment and then stumbles over its own question about workers.
    prefect(published, server, "deploy", "--name", "promote", but="workers/filter")
    deployment = ask("/deployments/name/promote/promote", method="GET")
    assert set(deployment["parameter_openapi_schema"]["properties"]) == {"version", "reason", "override", "root"}
    assert deployment["parameter_openapi_schema"]["required"] == ["reason"]
    asked = {"parameters": {"version": "2", "reason": "looks good to me", "root": str(published)}}
    run = ask(f"/deployments/{deployment['id']}/create_flow_run", asked)["id"]
    said = prefect(published, server, "worker", "start", "--pool", "ratchet", "--run-once")
    assert ask(f"/flow_runs/{run}", method="GET")["state"]["type"] == "COMPLETED", said[-3000:]
    move = read_moves(published, "policy")[-1]
    assert (move.after, move.reason, move.evidence["promote"]) == ("2", "looks good to me", True)
    artifacts = ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    assert "policy/2 is champion" in json.dumps(artifacts)
