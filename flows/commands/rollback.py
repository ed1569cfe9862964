"""`ratchet rollback [--to N]`: return to the champion before this one."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from flows.output import show


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "rollback",
        help="return to the champion before this one",
        description="Make the previous champion, or a version of choice, the champion again. The gate is not asked.",
    )
    parser.add_argument("--to", metavar="VERSION", help="the version to return to")
    parser.add_argument("--reason", default="rolled back", help="why; kept in the history")


def run(args: argparse.Namespace) -> int:
    """Move the champion back."""
    from tasks.registry import rollback
    from tasks.settings import project_root

    move = rollback(project_root(), to=args.to, reason=args.reason)
    show(args, asdict(move), f"{move.model}/{move.after} is champion (before: {move.before or 'none'})")
    return 0
