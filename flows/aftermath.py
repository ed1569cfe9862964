"""What is left to do when a run was killed: `python -m flows.aftermath ROOT`, started by the guard of that run.

No MLflow run stays running and, where the Prefect server is still there, no flow run. The next `ratchet run` does the
same at its start, for the case that this process was killed, too.
"""

import os
import sys
import time
from pathlib import Path

from tasks.guard import Guard
from tasks.settings import environment, tmp_dir

PATIENCE_SECONDS = 5.0
"""The kernel may still be taking the killed process apart when its pipe closes."""


def guard(root: Path) -> Guard:
    """Make the guard of a run in this process; to be entered when the run has something to lose."""
    repository = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [repository, os.environ.get("PYTHONPATH")]))
    return Guard(
        # -P keeps the project's own folders (`mlflow/`, `data/`) out of the module search path.
        [sys.executable, "-P", "-m", "flows.aftermath", str(root), str(os.getpid())],
        cwd=root,
        env={**environment(root), "PYTHONPATH": path},
        log=tmp_dir(root) / "logs" / "aftermath.log",
    )


def put_right(root: Path, *, local: bool) -> list[str]:
    """End what killed runs left open in MLflow and Prefect.

    Args:
        root: the project's root.
        local: whether PREFECT_API_URL, if it is set, is our own server.

    Returns:
        A sentence for each thing that was ended.
    """
    from flows.flow_runs import close_dead
    from tasks.live_run import may_have_dead_runs, sweep_dead_runs

    said = []
    if os.environ.get("PREFECT_API_URL"):
        said += [f"the flow run {run} was killed: marked as crashed" for run in close_dead(root, local=local)]
    if may_have_dead_runs(root):
        said += [f"the MLflow run {name} was left running by a killed process: ended" for name in sweep_dead_runs(root)]
    return said


def main(root: Path, pid: int) -> None:
    """Wait until the run's process is gone and put things right."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    # Our own server dies with its run, so only a named one can be asked; a record of a local run waits.
    for sentence in put_right(root, local=False):
        sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
