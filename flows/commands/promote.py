"""`ratchet promote VERSION --reason TEXT`: make a version the champion, with the gate's consent or against it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from flows.output import note, show


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "promote",
        help="make a version the champion",
        description="Ask the gate about the version and make it the champion. Where the gate is in force and says no, "
        "nothing moves (exit code 1) unless --override is given; the history keeps that.",
    )
    parser.add_argument("version", metavar="VERSION", help="3, v3 or @challenger")
    parser.add_argument("--reason", required=True, help="why; kept in the history")
    parser.add_argument("--override", action="store_true", help="promote although the gate says no")


def run(args: argparse.Namespace) -> int:
    """Judge, then move the champion."""
    from tasks.approval import approve
    from tasks.settings import project_root

    move = approve(project_root(), args.version, reason=args.reason, override=args.override, say=note)
    against = ", against the gate's verdict" if move.override else ""
    show(args, asdict(move), f"{move.model}/{move.after} is champion (before: {move.before or 'none'}){against}")
    return 0
