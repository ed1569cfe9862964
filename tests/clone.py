"""A copy of this project for tests that run the real pipeline: a git clone with the working tree's present files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 900
PLANTED = {
    "HF_TOKEN": "hf_" + "plantedSecret" * 2,
    "AWS_SECRET_ACCESS_KEY": "sk-" + "plantedSecret" * 2,
    "AWS_ACCESS_KEY_ID": "AKIA" + "PLANTED0SECRET00",
    "MLFLOW_TRACKING_USERNAME": "planted-user-name",
    "MLFLOW_TRACKING_PASSWORD": "planted-secret-password",
    "RATCHET_JUDGE_KEY": "planted-secret-judge",
}
"""Secrets that every command of a test finds in its environment; tests/test_end_to_end.py looks for them in files."""


def clone_project(project: Path, target: Path) -> Path:
    """Copy every file that git tracks or would track, as it is now, into a new repository with one commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=project,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        source, copy = project / name, target / name
        if source.is_file() and name != "dvc.lock" and not name.startswith("data/metrics/"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for line in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "copy"]):
        subprocess.run(["git", *line], cwd=target, check=True, capture_output=True)
    return target


def ratchet(root: Path, *words: str, code: int = 0) -> dict[str, Any]:
    """Run the command as a user does, in its own process, and return its JSON document."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RATCHET", "PREFECT", "MLFLOW"))}
    env["PYTHONPATH"] = str(root)
    result = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words, "--json"],
        cwd=root,
        env={**env, **PLANTED, "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    said = f"{words}: exit {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert result.returncode == code, said
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document
