"""`ratchet publish`: make MLflow agree with dvc.lock; doing it again changes nothing."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from flows.output import show


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    subparsers.add_parser(
        "publish",
        help="make MLflow agree with dvc.lock",
        description="Every trained model that dvc.lock records becomes an MLflow run and a registered version, every "
        "evaluation is put onto its policies. What is there already stays as it is.",
    )


def run(args: argparse.Namespace) -> int:
    """Publish; exit code 1 when MLflow could not be reached."""
    from tasks.publish import publish
    from tasks.settings import project_root

    report = publish(project_root())
    lines = []
    if report.published:
        lines.append(f"published: {', '.join(report.published)}")
    if report.unchanged:
        lines.append(f"there already: {', '.join(report.unchanged)}")
    if report.waiting:
        lines.append(f"waiting: {report.waiting}")
    show(args, asdict(report), lines or ["dvc.lock records no trained model; `ratchet run` makes them"])
    return 1 if report.waiting else 0
