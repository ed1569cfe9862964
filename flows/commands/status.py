"""`ratchet status`: the stages, the last runs, the champion and the challenger."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import duration, show, size, table
from flows.run_lock import Holder, holder

if TYPE_CHECKING:
    from tasks.graph import PlannedStage

STATES = {"cached": "fresh", "run": "stale", "maybe": "stale", "restore": "stale, in the run cache"}

log = logging.getLogger(__name__)


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    subparsers.add_parser(
        "status",
        help="stages, last runs, champion and challenger",
        description="Show how things stand; nothing is changed.",
    )


def run(args: argparse.Namespace) -> int:
    """Show how things stand."""
    from rlhf.checkpoint import disk_use
    from tasks.graph import plan
    from tasks.publish_ledger import pending
    from tasks.settings import applied_environment, project_root

    root = project_root()
    running = holder(root)
    stages = [_stage(root, stage, running) for stage in plan(root)]
    with applied_environment(root):
        registry = _registry(root)
    document: dict[str, Any] = {
        "running": {"pid": running.pid, "since": running.started} if running else None,
        "stages": stages,
        "unpublished": pending(root),
        "checkpoints": disk_use(root / ".ratchet" / "tmp" / "checkpoints"),
        **registry,
    }
    show(args, document, _lines(document, running))
    return 0


def _stage(root: Path, stage: PlannedStage, running: Holder | None) -> dict[str, Any]:
    from tasks.live import latest
    from tasks.timings import read_timing

    timing = read_timing(root, stage.name)
    # Live rows of the present run, by a stage that has not ended since.
    row = latest(root, stage.name, since=running.started) if running else None
    busy = row is not None and (timing is None or timing.finished < float(row["time"]))
    return {
        "name": stage.name,
        "state": "running" if busy else STATES[stage.action],
        "reasons": [str(reason) for reason in stage.reasons],
        "damage": [f"{damage.path} is {damage}" for damage in stage.damage if not damage.nowhere],
        "last_run": timing.finished if timing else None,
        "seconds": timing.seconds if timing else None,
        "peak_mb": timing.peak_mb if timing else None,
        "step": row["step"] if row is not None and busy else None,
        "total": row.get("total") if row is not None and busy else None,
    }


def _registry(root: Path) -> dict[str, Any]:
    """Ask the registry, where there is one already; asking would otherwise make an empty one."""
    from tasks.approval import pending
    from tasks.mlflow_store import StoreUnreachable, sqlite_file
    from tasks.settings import tracking_uri

    file = sqlite_file(tracking_uri(root))
    if file is not None and not file.is_file():
        return {"champion": None, "challenger": None, "pending": None, "registry": "nothing has been published yet"}
    try:
        holders = _holders(root, file)
    except StoreUnreachable as error:
        return {"champion": None, "challenger": None, "pending": None, "registry": str(error)}
    named = {
        role: {"version": found.reference, "stage": found.stage, "output": found.output_md5} if found else None
        for role, found in holders.items()
    }
    found = holders["challenger"]
    waits = pending(root, found.reference, found.decision) if found else None
    return {**named, "pending": asdict(waits) if waits else None, "registry": None}


def _holders(root: Path, file: Path | None) -> dict[str, Any]:
    """Champion and challenger: from the local database itself, and from MLflow where that cannot be done."""
    import sqlite3

    from tasks.registry_config import load_registry_config
    from tasks.registry_glance import glance

    aliases = load_registry_config(root).aliases
    if file is not None:
        policy = load_registry_config(root).policy
        try:
            return {role: glance(file, policy, getattr(aliases, role)) for role in ("champion", "challenger")}
        except sqlite3.Error as error:
            log.info("%s: %s; asking MLflow", file, error)
    from tasks.registry import challenger, champion

    return {"champion": champion(root), "challenger": challenger(root)}


def _lines(document: dict[str, Any], running: Holder | None) -> list[str]:
    rows = [
        (
            stage["name"],
            stage["state"] + (f" {stage['step']}/{stage['total']}" if stage["step"] is not None else ""),
            _when(stage["last_run"]),
            duration(stage["seconds"]) if stage["seconds"] is not None else None,
            round(stage["peak_mb"]) if stage["peak_mb"] else None,
        )
        for stage in document["stages"]
    ]
    lines = [f"a run is under way: {running}", ""] if running else []
    lines += [table(("stage", "state", "last run", "took", "peak MB"), rows), ""]
    for role in ("champion", "challenger"):
        found = document[role]
        lines.append(f"{role + ':':<12}{found['version']} ({found['stage']})" if found else f"{role + ':':<12}none")
    if waits := document["pending"]:
        lines.append(f"waits for you: `ratchet promote {waits['version']} --reason ...`: {waits['sentence']}")
    if document["registry"]:
        lines.append(document["registry"])
    if document["unpublished"]:
        lines.append(f"to be published: {', '.join(document['unpublished'])}; `ratchet publish` does it")
    lines += [f"{stage['name']}: {damage}" for stage in document["stages"] for damage in stage["damage"]]
    if document["checkpoints"]:
        taken = ", ".join(f"{stage} {size(count)}" for stage, count in document["checkpoints"].items())
        lines.append(f"checkpoints: {taken}; `ratchet clean` frees those that no run would resume from")
    if any(stage["state"].startswith("stale") for stage in document["stages"]):
        lines.append("`ratchet plan` says why a stage is stale, `ratchet run` brings all up to date")
    return lines


def _when(moment: float | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else None
