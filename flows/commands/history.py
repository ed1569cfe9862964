"""`ratchet history`: which version was champion when, and why."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from flows.output import show, table


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    subparsers.add_parser(
        "history",
        help="which version was champion when, and why",
        description="Every move of the champion, oldest first; moves that were made without ratchet are shown as such.",
    )


def run(args: argparse.Namespace) -> int:
    """Show the moves."""
    from tasks.registry import history
    from tasks.settings import project_root

    moves = history(project_root())
    rows = [
        (
            move.when,
            move.who,
            f"{move.before or '-'} -> {move.after or '-'}",
            _what(move.action, move.override),
            move.reason,
        )
        for move in moves
    ]
    text = table(["when", "who", "champion", "what", "why"], rows) if rows else "no version has been champion yet"
    show(args, [asdict(move) for move in moves], text)
    return 0


def _what(action: str, override: bool) -> str:
    return f"{action} (override)" if override else action
