"""Bring outputs to the shared DVC remote, so that no registered version points at weights that one laptop has."""

import sys
from collections.abc import Callable
from pathlib import Path

from rlhf.errors import StageFailed
from tasks.dvc_store import dvc_places
from tasks.process import run_supervised
from tasks.settings import environment


def push_outputs(
    root: Path, *, on_line: Callable[[str], None], cancelled: Callable[[], bool] = lambda: False
) -> str | None:
    """Push every output of the work tree and the run-cache, by which other machines find finished stages.

    Args:
        root: the project's root.
        on_line: called with each line that dvc says.
        cancelled: asked several times a second.

    Returns:
        The remote's address; None where none is configured, and nothing was done.

    Raises:
        StageFailed: the remote did not take them.
    """
    address = dvc_places(root).remote
    if address is None:
        return None
    command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", "push", "--run-cache"]
    ended = run_supervised(command, cwd=root, env=environment(root), on_line=on_line, cancelled=cancelled)
    if ended.exit_code != 0:
        said = (
            " ".join("\n".join(ended.lines).rpartition("ERROR: ")[2].split())
            or f"dvc push ended with {ended.exit_code}"
        )
        raise StageFailed(
            f"the remote {address} did not take the outputs: {said}; `ratchet publish` after it is mended"
        )
    return address
