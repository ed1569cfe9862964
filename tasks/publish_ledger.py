"""What was published where, so that "is there anything to publish?" takes milliseconds and no MLflow.

`.ratchet/state/published.json`: tracking address -> output or evaluation -> the MLflow run that holds it. The
ledger is a memory and no authority: MLflow is asked again whenever something is missing here.
"""

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from rlhf.outputs import atomic_writer
from tasks.lock_file import read_lock
from tasks.mlflow_store import sqlite_file
from tasks.settings import state_dir, tracking_uri
from tasks.stage_outputs import evaluation_output, model_outputs

FILE = "published.json"


class Ledger:
    """The entries of one tracking address."""

    def __init__(self, root: Path) -> None:
        """Read the file; one that cannot be read counts as empty, since MLflow knows better anyway."""
        self._path = state_dir(root) / FILE
        self.uri = tracking_uri(root)
        try:
            read = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            read = {}
        self._all: dict[str, dict[str, str]] = read if isinstance(read, dict) else {}
        self._mine = dict(self._all.get(self.uri, {}))

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return those keys that are not known to be published, in order."""
        wanted = list(keys)
        here = _runs_that_exist(self.uri, {self._mine[key] for key in wanted if key in self._mine})
        return [key for key in wanted if self._mine.get(key) not in here]

    def add(self, key: str, run_id: str) -> None:
        """Remember that the run holds it."""
        self._mine[key] = run_id
        self._all[self.uri] = self._mine
        with atomic_writer(self._path) as stream:
            json.dump(self._all, stream, indent=1, sort_keys=True)


def pending(root: Path) -> list[str]:
    """Name what `ratchet publish` would publish: stages, and "evaluate". Quick, and does not import MLflow."""
    lock = read_lock(root)
    names = {output.key: output.stage for output in model_outputs(root, lock)}
    evaluation = evaluation_output(root, lock)
    if evaluation is not None:
        names[evaluation.key] = "evaluate"
    return [names[key] for key in Ledger(root).missing(names)]


def _runs_that_exist(uri: str, run_ids: set[str]) -> set[str]:
    """Check against a local database, which may have been deleted; a server's word is taken from the ledger."""
    path = sqlite_file(uri)
    if path is None or not run_ids:
        return run_ids
    if not path.is_file():
        return set()
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1.0)
    except sqlite3.Error:
        return run_ids
    try:
        marks = ",".join("?" * len(run_ids))
        query = f"SELECT run_id FROM model_versions WHERE run_id IN ({marks})"
        return {row[0] for row in connection.execute(query, sorted(run_ids))}
    except sqlite3.OperationalError as error:
        # Locked means that somebody is writing and it is there; without the table it is not a store of ours.
        return run_ids if "locked" in str(error) else set()
    finally:
        connection.close()
