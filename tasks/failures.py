"""Why a stage failed: the note that its process leaves, because DVC turns every exit code into 255."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.settings import tmp_dir

Kind = Literal["bad_input", "failed", "signal", "busy", "cancelled"]
"""bad_input: the user's data or parameters. failed: the stage gave up. signal: it was killed from outside, or a rank
was lost. busy: another DVC process held what it needs. cancelled: we stopped it ourselves."""

RETRYABLE: frozenset[Kind] = frozenset({"signal", "busy"})
KINDS: frozenset[str] = frozenset({"bad_input", "failed", "signal", "busy", "cancelled"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What went wrong, for a person and for whoever decides on a retry."""

    stage: str
    exit_code: int
    sentence: str
    kind: Kind


class StageError(Exception):
    """A stage did not finish.

    Attributes:
        failure: what is known about it.
        exit_code: 2 for bad input, else 1.
        sentence: what, where, what was got, what was wanted, what to do.
    """

    def __init__(self, failure: Failure) -> None:
        """Keep the failure; the message names the stage."""
        super().__init__(f"{failure.stage}: {failure.sentence}")
        self.failure = failure
        self.exit_code = 2 if failure.kind == "bad_input" else 1
        self.sentence = str(self)

    def __reduce__(self) -> tuple[type["StageError"], tuple[Failure]]:
        """Pickle by the failure: Prefect carries exceptions between its own threads and processes."""
        return (StageError, (self.failure,))

    @property
    def retryable(self) -> bool:
        """Whether another attempt may succeed with nothing changed."""
        return self.failure.kind in RETRYABLE


def failure_file(root: Path, stage: str) -> Path:
    """Return where the stage's process leaves its note."""
    return tmp_dir(root) / "failures" / f"{stage}.json"


def forget_failure(root: Path, stage: str) -> None:
    """Remove an old note, so that one found later is about the present attempt."""
    failure_file(root, stage).unlink(missing_ok=True)


def read_failure(root: Path, stage: str) -> Failure | None:
    """Read the note of a stage; None when it left none (it was killed, or never began)."""
    try:
        note = json.loads(failure_file(root, stage).read_text(encoding="utf-8"))
        kind: Kind = note["kind"] if note["kind"] in KINDS else "failed"
        return Failure(stage=stage, exit_code=int(note["exit_code"]), sentence=str(note["sentence"]).strip(), kind=kind)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # a note torn by the death of its writer says no more than no note
