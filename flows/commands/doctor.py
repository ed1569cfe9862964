"""`ratchet doctor`: look at the machine and the project, and say what to do about each problem."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import show, table

if TYPE_CHECKING:
    from tasks.diagnosis import Check

log = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    subparsers.add_parser(
        "doctor",
        help="check this machine and this project",
        description="Check environment, versions, GPU, disk and stores; exit code 1 when something does not work.",
    )


def run(args: argparse.Namespace) -> int:
    """Run every check and show the results."""
    from tasks.diagnosis import worst
    from tasks.settings import project_root

    root = project_root()
    checks = examine_all(root)
    state = worst(checks)
    show(args, {"state": state, "checks": [dataclasses.asdict(check) for check in checks]}, _lines(checks))
    return 1 if state == "fail" else 0


def examine_all(root: Path) -> list[Check]:
    """Run the checks, each to its end whatever the others find."""
    from tasks import health, machine
    from tasks.diagnosis import examine

    sections = _sections(root)
    threads = {stage: s["threads"] for stage, s in sections.items() if isinstance(s.get("threads"), int)}
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", machine.python),
        ("packages", lambda: machine.packages(root)),
        ("torch", machine.torch_build),
        ("matmul", machine.matmul),
        ("processors", lambda: machine.processors(threads)),
        ("memory", machine.memory),
        ("disk", lambda: machine.disk(root)),
        ("model cache", machine.model_cache),
        ("git", lambda: health.git(root)),
        ("dvc", lambda: health.dvc(root)),
        ("cache", lambda: health.cache(root)),
        ("remote", lambda: health.remote(root)),
        ("writable", lambda: health.writable(root)),
        ("params.yaml", lambda: health.settings(root)),
        ("mlflow", lambda: health.mlflow_store(root)),
        ("prefect", health.prefect_server),
    ]
    return [examine(name, check) for name, check in checks]


def _sections(root: Path) -> dict[str, dict[str, Any]]:
    """Read the sections of params.yaml; a file that cannot be read is left to the check of the settings."""
    from rlhf.config import read_params
    from rlhf.errors import BadInput

    try:
        params = read_params(root / "params.yaml")
    except BadInput as error:
        log.debug("%s", error)
        return {}
    return {stage: section for stage, section in params.items() if isinstance(section, dict)}


def _lines(checks: list[Check]) -> list[str]:
    lines = [table(("", "check", "found"), [(check.state, check.name, check.found) for check in checks])]
    troubled = [check for check in checks if check.remedy]
    if troubled:
        lines += ["", *(f"{check.state} {check.name}: {check.remedy}" for check in troubled)]
    count = sum(check.state == "fail" for check in checks)
    lines += ["", f"{count} problem(s) to solve" if count else "ready: `ratchet run`"]
    return lines
