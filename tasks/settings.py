"""Where things lie and what environment a child process gets; the one place that knows both.

Everything is a function of the project's root, so nothing is decided when this module is imported and a
test can point the whole of ratchet at a folder of its own.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import BadInput

ROOT_VARIABLE = "RATCHET_ROOT"
GRAPH_FILE = "dvc.yaml"


def project_root(start: Path | None = None) -> Path:
    """Find the folder that holds the stage graph.

    Args:
        start: folder to begin at, the current one if None. `$RATCHET_ROOT` wins over both.

    Returns:
        Absolute path of the nearest folder, upwards, with a dvc.yaml in it.

    Raises:
        BadInput: there is none, or `$RATCHET_ROOT` names a folder without one.
    """
    named = os.environ.get(ROOT_VARIABLE)
    if named:
        root = Path(named).expanduser().resolve()
        if not (root / GRAPH_FILE).is_file():
            raise BadInput(f"{ROOT_VARIABLE}={named}: no {GRAPH_FILE} in that folder; set it to a Ratchet project")
        return root
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / GRAPH_FILE).is_file():
            return folder
    raise BadInput(f"{here}: no {GRAPH_FILE} here or above; change to a Ratchet project or set {ROOT_VARIABLE}")


def state_dir(root: Path | None = None) -> Path:
    """Return the folder of what must outlive a clean-up (MLflow, Prefect, history), made if absent."""
    return _made((root or project_root()) / ".ratchet" / "state")


def tmp_dir(root: Path | None = None) -> Path:
    """Return the folder of what can be thrown away (checkpoints, live rows, slots, logs), made if absent."""
    return _made((root or project_root()) / ".ratchet" / "tmp")


def tracking_uri(root: Path | None = None) -> str:
    """Return `$MLFLOW_TRACKING_URI`, or the project's own SQLite store by its absolute path.

    MLflow's own default is relative to the current folder, which gives every caller a store of its own.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return named or f"sqlite:///{state_dir(root).resolve() / 'mlflow.db'}"


def environment(root: Path | None = None) -> dict[str, str]:
    """Return the environment for a child process: the present one plus what Ratchet fixes.

    A value that the user has already set is kept, except for PATH, where the folder of this interpreter
    comes first so that `dvc`, `prefect` and `python` are the installed ones.
    """
    found = root or project_root()
    own = {
        ROOT_VARIABLE: str(found),
        "PREFECT_HOME": str(state_dir(found) / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_UI_STATIC_DIRECTORY": str(tmp_dir(found) / "prefect-ui"),
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        # MLflow takes only the literal word; Prefect takes it too.
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "MLFLOW_DISABLE_ENV_MANAGER_CONDA_WARNING": "true",
        "DVC_NO_ANALYTICS": "1",
        # The same folder as core.site_cache_dir in .dvc/config, which DVC takes relative to the current folder.
        "DVC_SITE_CACHE_DIR": str(tmp_dir(found) / "dvc"),
        "DVC_STUDIO_OFFLINE": "1",
        "MPLCONFIGDIR": str(tmp_dir(found) / "matplotlib"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_EXTENSIONS_DIR": str(tmp_dir(found) / "torch_extensions"),
        "PYTHONUNBUFFERED": "1",
    }
    result = {**own, **os.environ}
    # A root found by walking up and one named by the variable must not disagree in a grandchild.
    result[ROOT_VARIABLE] = str(found)
    folder = str(Path(sys.executable).parent)
    others = [entry for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if entry != folder]
    result["PATH"] = os.pathsep.join([folder, *others])
    return result


@contextmanager
def applied_environment(root: Path | None = None) -> Iterator[None]:
    """Give this process, for the length of the block, the environment that children get.

    To be entered before prefect, dvc or mlflow is imported, since they read it then.
    """
    before = dict(os.environ)
    os.environ.update(environment(root))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made ({error.strerror}); make the project's folder writable") from error
    return folder
