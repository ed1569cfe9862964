"""A Prefect server of our own for the length of a run, where the user has named none.

It is a child that dies with us, on a free loopback port, with its database in `.ratchet/state/prefect`. Prefect's own
ephemeral server outlives a killed parent.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from rlhf.errors import BadInput, StageFailed
from tasks import supervisor
from tasks.settings import environment, tmp_dir

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""The very first start creates the database, which takes several times as long as a later one."""
GRACE_SECONDS = 5.0
ATTEMPTS = 3
UNUSED_SERVICES = (
    "CANCELLATION_CLEANUP",
    "CLEANUP_RECONCILER",
    "DB_VACUUM",
    "FOREMAN",
    "LATE_RUNS",
    "PAUSE_EXPIRATIONS",
    "REPOSSESSOR",
    "SCHEDULER",
    "TRIGGERS",
)
"""They serve deployments, workers and automations, which a single run has none of; each polls the database."""


def server_is_needed() -> bool:
    """Whether the user has named no server in PREFECT_API_URL."""
    return not os.environ.get("PREFECT_API_URL")


def require_named_server(limit: float = 10.0) -> None:
    """Make sure that somebody answers at PREFECT_API_URL; Prefect itself would try for minutes.

    Args:
        limit: seconds to wait at most.

    Raises:
        BadInput: nobody does.
    """
    url = os.environ["PREFECT_API_URL"]
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=limit):
            return
    except urllib.error.HTTPError:
        return  # it answers, if only to say that it wants a key, which Prefect has and we have not
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise BadInput(
            f"PREFECT_API_URL={url}: no Prefect server answers there ({reason}); start it, or unset the variable "
            "and Ratchet brings a server of its own"
        ) from error


class LocalServer:
    """A server process; a context manager that starts it on entering, without waiting until it answers."""

    def __init__(self, root: Path, port: int | None = None) -> None:
        """Prepare; nothing is started yet. Without `port` a free one is taken."""
        self._root = root
        self._wanted_port = port
        self._log = tmp_dir(root) / "logs" / "prefect-server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def ui_url(self) -> str:
        """Where a browser finds the run."""
        return f"http://{HOST}:{self._port}"

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL has to be."""
        return f"{self.ui_url}/api"

    def __enter__(self) -> "LocalServer":
        """Start the process; must be called from a thread that outlives it."""
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process and everything below it."""
        self.stop()

    def wait(self, limit: float = START_SECONDS) -> None:
        """Return when the server answers.

        Args:
            limit: seconds to wait at most.

        Raises:
            StageFailed: it ended or did not answer in time.
        """
        deadline = time.monotonic() + limit
        attempt = 1
        while not self._healthy():
            if self._process is None or self._process.poll() is not None:
                # Somebody may have taken the port between our look and its start.
                if attempt == ATTEMPTS or "address already in use" not in self._said():
                    raise StageFailed(self._complaint("ended while it started"))
                attempt += 1
                self._start()
            if time.monotonic() >= deadline:
                self.stop()
                raise StageFailed(self._complaint(f"did not answer within {limit:.0f} s"))
            time.sleep(0.05)

    def stop(self) -> None:
        """End the server; does nothing when it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _start(self) -> None:
        self._port = self._wanted_port or free_port()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(GRACE_SECONDS)]
        # Uvicorn itself instead of `prefect server start`, which is one more process that does the same.
        server = [sys.executable, "-P", "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        options = ["--host", HOST, "--port", str(self._port), "--log-level", "warning", "--timeout-keep-alive", "10"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*launcher, *server, *options],
                cwd=self._root,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environment(self) -> dict[str, str]:
        env = environment(self._root)
        for service in UNUSED_SERVICES:
            env.setdefault(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        env.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "WARNING")
        env["PREFECT_UI_API_URL"] = self.api_url
        return env

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.is_file() else ""

    def _complaint(self, what: str) -> str:
        lines = self._said().splitlines()
        last = f" (its last line: {lines[-1].strip()})" if lines else ""
        where = self._log.relative_to(self._root) if self._log.is_relative_to(self._root) else self._log
        return f"the local Prefect server {what}{last}; see {where}, or name a running server in PREFECT_API_URL"


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
