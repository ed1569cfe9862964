"""`ratchet publish`: make MLflow, and the remotes, agree with dvc.lock; doing it again changes nothing."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from flows.output import note, show


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    subparsers.add_parser(
        "publish",
        help="make MLflow agree with dvc.lock",
        description="Every trained model that dvc.lock records becomes an MLflow run and a registered version, every "
        "evaluation is put onto its policies. What is there already stays as it is. Where there are remotes, outputs "
        "go to DVC's first, and the tags of the versions to git's last.",
    )


def run(args: argparse.Namespace) -> int:
    """Publish; exit code 1 when MLflow or the git remote could not be reached."""
    from tasks.publish import pending, publish
    from tasks.remote import push_outputs
    from tasks.settings import project_root

    root = project_root()
    if pending(root):
        # A version must not point at weights that nobody else can have.
        push_outputs(root, on_line=note)
    report = publish(root)
    lines = []
    if report.published:
        lines.append(f"published: {', '.join(report.published)}")
    if report.unchanged:
        lines.append(f"there already: {', '.join(report.unchanged)}")
    if report.waiting:
        lines.append(f"waiting: {report.waiting}")
    if report.pushed:
        lines.append(f"pushed to git: {', '.join(ref.removeprefix('refs/') for ref in report.pushed)}")
    if report.unpushed:
        lines.append(f"not pushed: {report.unpushed}")
    show(args, asdict(report), lines or ["dvc.lock records no trained model; `ratchet run` makes them"])
    return 1 if report.waiting or report.unpushed else 0
