"""The champion's history: who moved it, when, from where to where, and why; only ever appended to.

It is written twice. Tags of the registered model (`ratchet.move.1`, `.2`, ...) are what everybody sees who shares the
registry; `.ratchet/state/history.jsonl` keeps what was moved from this folder with all its evidence.
"""

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rlhf.outputs import atomic_writer
from tasks.settings import state_dir

FILE = "history.jsonl"
BEGUN = "move.json"
"""The move that is being made: should the process die after the alias was set, the next one still records it."""
TAG = "ratchet.move."
LONGEST_TAG = 4500
"""Characters; MLflow's databases hold 5000."""
SHOWN_EVIDENCE = (
    "promote", "outcome", "mode", "champion", "challenger", "opponent", "prompts", "look", "error", "conditions",
    "weights", "sentence",
)  # fmt: skip
"""What a tag keeps of the evidence; all of it is in the file of the folder from which it was moved."""
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
    number: int = 0
    """Place in the history of this registry, from 1; 0 where nobody counted."""
    id: str = ""
    """The same in the file and in the tag."""
    registry: str = ""
    """Which registered model of that name: when it was made, as another one may follow it."""


def history_file(root: Path) -> Path:
    """Return the file."""
    return state_dir(root) / FILE


def append_move(root: Path, move: Move) -> None:
    """Add a line and have it on the disk before returning."""
    line = json.dumps(asdict(move), ensure_ascii=False, sort_keys=True) + "\n"
    with history_file(root).open("a+b") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":  # a torn line must not swallow this one
                line = f"\n{line}"
        stream.write(line.encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_moves(root: Path, model: str, *, registry: str = "", tags: Mapping[str, str] | None = None) -> list[Move]:
    """Return the recorded moves of a registered model, oldest first; a line torn by a power cut is left out.

    Args:
        root: the project's root.
        model: registered name.
        registry: as in `Move`; moves of another registered model of that name are left out. "" takes all.
        tags: of the registered model.
    """
    moves = [move for move in _lines(root) if move.model == model and _same(move.registry, registry)]
    known = {move.id for move in moves if move.id}
    moves += [move for move in _tagged(tags or {}) if move.id not in known and _same(move.registry, registry)]
    # Sorting keeps the order of those which nobody counted; they are of before moves had numbers.
    return sorted(moves, key=lambda move: move.number)


def tag_of(move: Move) -> tuple[str, str]:
    """Return the tag that everybody sees, as key and value; long texts are cut."""
    evidence = {name: move.evidence[name] for name in SHOWN_EVIDENCE if move.evidence.get(name) is not None}
    short = replace(move, reason=_cut(move.reason, 1500), evidence=dict(evidence))
    if isinstance(evidence.get("sentence"), str):
        short.evidence["sentence"] = _cut(evidence["sentence"], 1500)
    value = json.dumps(asdict(short), ensure_ascii=False, sort_keys=True)
    if len(value) > LONGEST_TAG:
        value = json.dumps(asdict(replace(short, reason=_cut(move.reason, 500), evidence={})), sort_keys=True)
    return f"{TAG}{move.number}", value


def begin_move(root: Path, move: Move) -> None:
    """Write down what is about to be done."""
    with atomic_writer(state_dir(root) / BEGUN) as stream:
        json.dump(asdict(move), stream)


def begun_move(root: Path) -> Move | None:
    """Return the move that was begun and not recorded, None when there is none."""
    try:
        return _move(json.loads((state_dir(root) / BEGUN).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def end_move(root: Path) -> None:
    """Forget what was begun."""
    (state_dir(root) / BEGUN).unlink(missing_ok=True)


def _lines(root: Path) -> list[Move]:
    path = history_file(root)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [move for line in lines if (move := _parsed(line)) is not None]


def _tagged(tags: Mapping[str, str]) -> list[Move]:
    return [move for key, value in tags.items() if key.startswith(TAG) and (move := _parsed(value)) is not None]


def _parsed(text: str) -> Move | None:
    try:
        return _move(json.loads(text))
    except ValueError:
        return None


def _move(entry: Any) -> Move | None:
    known = {field.name for field in fields(Move)}
    try:
        return Move(**{name: value for name, value in entry.items() if name in known})
    except (TypeError, AttributeError):  # a line or tag that somebody else wrote
        return None


def _same(recorded: str, asked: str) -> bool:
    return not asked or not recorded or recorded == asked


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


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

    A promotion goes one further; a rollback to the one before takes the last off, and so does somebody who sets the
    alias back by hand; a move to any other goes on. While nothing is champion the last one stays the last.
    """
    stack: list[str] = []
    for move in moves:
        if move.after is None:
            continue
        if not stack and move.before is not None:
            stack.append(move.before)
        if move.action != "promote" and len(stack) > 1 and stack[-2] == move.after:
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
