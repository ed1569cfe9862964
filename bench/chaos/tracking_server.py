"""A real MLflow server on the store of the arena's project, to be killed and started again."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping

import psutil

from bench.chaos.arena import Arena


class MlflowServer:
    """A real tracking server on the project's own store."""

    def __init__(self, arena: Arena) -> None:
        """Choose a port; nothing is started yet."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._arena = arena
        self._process: subprocess.Popen[bytes] | None = None
        self.variables: Mapping[str, str] = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self._port}"}

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.kill()
        state = self._arena.root / ".ratchet/state"
        words = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        database, artifacts = f"sqlite:///{state}/mlflow.db", str(state / "served")
        stores = ["--backend-store-uri", database, "--artifacts-destination", artifacts]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self._arena.folder / "mlflow-server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *words, *stores], cwd=self._arena.folder, env=env, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            health = f"http://127.0.0.1:{self._port}/health"
            with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=1):
                return
            time.sleep(0.2)
        raise RuntimeError("the MLflow server did not answer within 90 s")

    def kill(self) -> None:
        """End it and its workers at once."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._process = None
