"""`ratchet accept STAGE --reason TEXT`: a source change that leaves results as they are needs no retraining."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import CommandError
from flows.output import show

if TYPE_CHECKING:
    from tasks.graph import PlannedStage, Reason

RECORD = "accepted.jsonl"


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "accept",
        help="record that a source change leaves a stage's results as they are",
        description="For a comment or a rename: the stage counts as up to date with the present sources, its outputs "
        "stay. Refused when anything but source files under rlhf/ has changed.",
    )
    parser.add_argument("stages", nargs="+", metavar="STAGE", help="stage(s) of dvc.yaml, in any order")
    parser.add_argument("--reason", required=True, help="why the results cannot differ; kept with the record")


def run(args: argparse.Namespace) -> int:
    """Check every stage first, then record each, upstream before downstream."""
    from tasks.graph import load_graph, plan
    from tasks.settings import project_root

    root = project_root()
    reason = " ".join(args.reason.split())
    if not reason:
        raise CommandError("ratchet accept: --reason is empty; say why the results cannot differ")
    graph = load_graph(root)
    for stage in args.stages:
        graph.stage(stage)
    planned = {stage.name: stage for stage in plan(root)}
    stages = [name for name in graph.order if name in args.stages]
    sources = {name: sources_of(planned[name], accepted=set(args.stages)) for name in stages}
    rows = []
    for name in stages:
        if not sources[name]:
            continue
        _commit(root, name)
        rows.append(_record(root, name, sources[name], reason))
    fresh = [name for name in stages if not sources[name]]
    lines = [f"{row['stage']}: accepted {', '.join(f['path'] for f in row['files'])}" for row in rows]
    lines += [f"{name}: up to date, nothing to accept" for name in fresh]
    show(args, {"accepted": rows, "fresh": fresh}, lines)
    return 0


def sources_of(stage: PlannedStage, *, accepted: set[str]) -> list[Reason]:
    """Take the changed source files of a stage, provided that nothing else about it has changed.

    Args:
        stage: the stage as planned.
        accepted: stages that are accepted in the same command, whose outputs therefore stay as they are.

    Returns:
        One reason per changed source file; none for a stage that is up to date.

    Raises:
        CommandError: anything but sources differs.
    """
    if stage.action == "cached":
        return []
    sources = [reason for reason in stage.reasons if _is_source(reason)]
    others = [r for r in stage.reasons if not _is_source(r) and not (r.kind == "upstream" and r.new in accepted)]
    if others:
        first = others[0]
        why = f"it reads {first.name} of {first.new}, which is stale too" if first.kind == "upstream" else str(first)
        also = f", or accept {first.new} as well" if first.kind == "upstream" else ""
        raise CommandError(
            f"ratchet accept {stage.name}: not only source files differ: {why}; "
            f"run it again with `ratchet run --until {stage.name}`{also}"
        )
    return sources


def _is_source(reason: Reason) -> bool:
    return reason.kind == "dependency" and reason.name.startswith("rlhf/") and reason.name.endswith(".py")


def _commit(root: Path, stage: str) -> None:
    """Have DVC take the present dependencies for the recorded ones; outputs are checked to be the recorded ones."""
    from tasks.settings import environment

    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "commit", "--force", stage]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CommandError(f"ratchet accept {stage}: dvc commit failed: {lines[-1] if lines else 'no message'}", 1)


def _record(root: Path, stage: str, sources: Sequence[Reason], reason: str) -> dict[str, Any]:
    from tasks.settings import state_dir

    row = {
        "stage": stage,
        "reason": reason,
        "files": [{"path": source.name, "old": source.old, "new": source.new} for source in sources],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with (state_dir(root) / RECORD).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return row
