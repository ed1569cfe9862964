"""The champion's history: an append-only file of who moved it, when, from where to where, and why."""

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tasks.settings import state_dir

FILE = "history.jsonl"
Action = Literal["promote", "rollback", "moved elsewhere"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """One move of the champion."""

    when: str
    """ISO 8601, UTC."""
    who: str
    action: Action
    model: str
    before: str | None
    """Version that was champion, None when there was none."""
    after: str | None
    """Version that is champion from now on."""
    reason: str
    evidence: dict[str, Any]
    override: bool = False
    """The gate had said no."""


def history_file(root: Path) -> Path:
    """Return the file."""
    return state_dir(root) / FILE


def append_move(root: Path, move: Move) -> None:
    """Add a line and have it on the disk before returning."""
    line = json.dumps(asdict(move), ensure_ascii=False, sort_keys=True) + "\n"
    with history_file(root).open("a", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())


def read_moves(root: Path, model: str) -> list[Move]:
    """Return the recorded moves of a registered model, oldest first; a line torn by a power cut is left out."""
    path = history_file(root)
    if not path.is_file():
        return []
    known = {field.name for field in fields(Move)}
    moves = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("model") == model:
            moves.append(Move(**{name: value for name, value in entry.items() if name in known}))
    return moves


def with_discrepancies(moves: list[Move], champion: str | None, model: str) -> list[Move]:
    """Insert what must have happened elsewhere: gaps between one move's end and the next one's beginning.

    Args:
        moves: the recorded moves.
        champion: version that the registry calls champion now.
        model: registered name.
    """
    shown: list[Move] = []
    last: str | None = None
    for move in moves:
        if move.before != last:
            shown.append(_elsewhere(move.when, model, last, move.before))
        shown.append(move)
        last = move.after
    if champion != last:
        shown.append(_elsewhere(now(), model, last, champion))
    return shown


def champions_in_force(moves: list[Move]) -> list[str]:
    """Return the champions that a rollback may go back through, the present one last.

    A promotion goes one further; a rollback to the one before takes the last off; a rollback to any other goes on.
    """
    stack: list[str] = []
    for move in moves:
        if move.after is None:
            continue
        if not stack and move.before is not None:
            stack.append(move.before)
        if move.action == "rollback" and len(stack) > 1 and stack[-2] == move.after:
            stack.pop()
        elif not stack or stack[-1] != move.after:
            stack.append(move.after)
    return stack


def now() -> str:
    """Return the present time as it stands in the history."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def who() -> str:
    """Name the person and the machine."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _elsewhere(when: str, model: str, before: str | None, after: str | None) -> Move:
    return Move(
        when=when,
        who="unknown",
        action="moved elsewhere",
        model=model,
        before=before,
        after=after,
        reason="the registry was changed without ratchet (MLflow's pages or API)",
        evidence={},
    )
