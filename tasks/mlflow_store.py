"""A connection to MLflow that says quickly and in one sentence when there is none.

MLflow is imported inside functions only: it takes seconds, and most commands never need it.
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

from tasks.settings import state_dir, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "ratchet"
PROBE_SECONDS = 3.0
DOWN_CODES = frozenset({"TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED"})
"""MLflow error codes that speak of the store's state and not of what was asked."""


_LOADING = threading.RLock()


class StoreUnreachable(Exception):
    """MLflow cannot be used now; the message is the sentence to show."""

    exit_code = 1


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file lock, waiting for it; the kernel frees it when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def sqlite_file(uri: str) -> Path | None:
    """Return the database file of a SQLite address, None for any other."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def connect(root: Path) -> MlflowClient:
    """Return a client of the project's store, set up and upgraded as far as needed.

    The first use of a database creates its tables; two processes doing so at once break each other, hence the lock.

    Raises:
        StoreUnreachable: down, locked, or not to be opened.
    """
    uri = tracking_uri(root)
    _probe(uri)
    _quieten()
    _load()
    import mlflow
    from mlflow import MlflowClient

    if mlflow.get_tracking_uri() != uri:
        named = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri)
        # MLflow has put the address into the environment, where it would pass for the user's own choice.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if named is not None:
            os.environ["MLFLOW_TRACKING_URI"] = named
    with translated(uri), exclusive(state_dir(root) / "mlflow.lock"):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _load() -> None:
    """Import MLflow, one thread at a time: its modules import each other, and two threads meet half-made ones."""
    with _LOADING:
        importlib.import_module("mlflow")
        for name in ("entities", "entities.model_registry", "exceptions", "tracking"):
            importlib.import_module(f"mlflow.{name}")


def experiment_id(client: MlflowClient, root: Path) -> str:
    """Return the id of Ratchet's experiment, made when absent, its artifacts beside the local database."""
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None and found.lifecycle_stage == "active":
        return str(found.experiment_id)
    if found is not None:
        client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    local = sqlite_file(client.tracking_uri)
    place = None if local is None else (local.parent / "mlflow-artifacts").as_uri()
    with exclusive(state_dir(root) / "mlflow.lock"):
        again = client.get_experiment_by_name(EXPERIMENT)
        return str(again.experiment_id if again else client.create_experiment(EXPERIMENT, artifact_location=place))


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn failures that mean "the store is not there" into StoreUnreachable; let all others through."""
    _load()
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in DOWN_CODES:
            raise
        raise _unreachable(uri, error) from error
    except (
        sqlalchemy.exc.DBAPIError,
        sqlalchemy.exc.TimeoutError,
        requests.RequestException,
        sqlite3.Error,
        ConnectionError,
    ) as error:
        raise _unreachable(uri, error) from error


def _unreachable(uri: str, error: object) -> StoreUnreachable:
    parts = urlparse(uri)
    shown = uri if parts.password is None else uri.replace(f":{parts.password}@", ":***@")
    reason = " ".join(str(error).split())[:300]
    return StoreUnreachable(f"MLflow at {shown} is not reachable: {reason}; `ratchet publish` catches up later")


def _probe(uri: str) -> None:
    """Find out in seconds what MLflow's own retries would take minutes to find."""
    path, parts = sqlite_file(uri), urlparse(uri)
    try:
        if path is not None:
            _probe_sqlite(path)
        elif parts.scheme in ("http", "https"):
            port = parts.port or (443 if parts.scheme == "https" else 80)
            socket.create_connection((parts.hostname or "localhost", port), PROBE_SECONDS).close()
    except (OSError, sqlite3.Error) as error:
        raise _unreachable(uri, error) from error


def _probe_sqlite(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        return
    connection = sqlite3.connect(path, timeout=PROBE_SECONDS, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _quieten() -> None:
    """Keep MLflow's chatter out of our output; stdout belongs to the command's result."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.ERROR)
