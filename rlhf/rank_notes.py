"""What ranks tell the process that started them: one small file a rank, in a folder that lives as long as the launch.

A launcher reduces the end of its ranks to one exit code of its own (1, whatever they returned), and a rank that fails
because another one is gone says so as loudly as the one that was at fault. The notes keep the two apart.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

FOLDER_VARIABLE = "RATCHET_RANKS"
State = Literal["started", "done", "failed"]
Kind = Literal["", "bad_input", "failed", "signal"]
"""As in the failure file; `signal` is the word of a rank that waited for another in vain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RankNote:
    """The last word of one rank."""

    rank: int
    world: int
    here: int
    """Ranks on this machine."""
    pid: int
    state: State
    exit_code: int = 0
    kind: Kind = ""
    sentence: str = ""


def is_rank() -> bool:
    """Whether this process is one of several ranks, whoever started it."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def leave_note(state: State, *, exit_code: int = 0, kind: Kind = "", sentence: str = "") -> None:
    """Write this rank's note over its last one; does nothing where nobody collects them."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder or not Path(folder).is_dir():
        return
    world = int(os.environ["WORLD_SIZE"])
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)
    note = RankNote(
        rank=int(os.environ["RANK"]), world=world, here=here, pid=os.getpid(), state=state, exit_code=exit_code,
        kind=kind, sentence=sentence,
    )  # fmt: skip
    part = Path(folder) / f".{note.rank}"
    part.write_text(json.dumps(asdict(note)), encoding="utf-8")
    part.replace(Path(folder) / f"{note.rank}.json")


def read_notes(folder: Path) -> list[RankNote]:
    """The notes of all ranks that have begun, by rank."""
    notes = [RankNote(**json.loads(file.read_text(encoding="utf-8"))) for file in folder.glob("[0-9]*.json")]
    return sorted(notes, key=lambda note: note.rank)


def name_ranks(ranks: list[int], world: int) -> str:
    """Say which ranks: `rank 1 of 4`, `ranks 1 and 2 of 4`."""
    listed = ", ".join(map(str, ranks[:-1])) + f" and {ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
    return f"{'ranks' if len(ranks) > 1 else 'rank'} {listed} of {world}"
