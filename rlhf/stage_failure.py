"""The last door of a stage: whatever ended it becomes one sentence, an exit code, and a file for the orchestrator."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf import out_of_memory
from rlhf.errors import BadInput, StageFailed
from rlhf.rank_notes import FOLDER_VARIABLE, Kind, is_rank, leave_note

FAILURES = Path(".ratchet/tmp/failures")
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def explain(stage: str, error: Exception, section: Any) -> int:
    """Report what ended a stage.

    Args:
        stage: its name.
        error: what was raised.
        section: the stage's section of params.yaml, as far as it was read.

    Returns:
        The exit code.
    """
    if isinstance(error, BadInput):
        return report(stage, error.exit_code, "bad_input", str(error))
    if isinstance(error, StageFailed):
        return report(stage, error.exit_code, "failed", str(error))
    if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        where = error.filename or "a file"
        return report(
            stage, 1, "failed", f"cannot write {where}: {error.strerror}; free space or rights, then run again"
        )
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    sentence = out_of_memory.explain(error, section if isinstance(section, Mapping) else {}, ranks=ranks)
    if sentence is not None:
        return report(stage, 1, "failed", sentence)
    if is_rank():
        from rlhf.lost_ranks import blame

        if (sentence := blame(error)) is not None:
            return report(stage, 1, "signal", sentence)
    traceback.print_exception(error)
    return report(stage, 1, "failed", f"{type(error).__name__}: {error}")


def report(stage: str, exit_code: int, kind: Kind, sentence: str) -> int:
    """Write the failure file and the sentence, or, on a rank, a note for its supervisor; returns the exit code."""
    if is_rank() and os.environ.get(FOLDER_VARIABLE):
        leave_note("failed", exit_code=exit_code, kind=kind, sentence=sentence)
        return exit_code
    sys.stderr.write(f"{stage}: {sentence}\n")
    try:
        FAILURES.mkdir(parents=True, exist_ok=True)
        document = {"stage": stage, "exit_code": exit_code, "kind": kind, "sentence": sentence}
        (FAILURES / f"{stage}.json").write_text(json.dumps(document), encoding="utf-8")
    except OSError as error:
        sys.stderr.write(f"{stage}: the reason could not be kept in {FAILURES}: {error.strerror}\n")
    return exit_code
