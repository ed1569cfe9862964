"""A Prefect server of our own for the length of a run, where the user has named none.

It is a child that dies with us, on a free loopback port, with its database in `.ratchet/state/prefect`; when it dies
before us, it is started again on the same port. Prefect's own ephemeral server outlives a killed parent.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from flows.output import note
from rlhf.errors import BadInput, StageFailed
from tasks import supervisor
from tasks.settings import environment, tmp_dir

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""The very first start creates the database, which takes several times as long as a later one."""
GRACE_SECONDS = 5.0
ATTEMPTS = 3
RESTARTS = 3
"""How often a server that died is started again before the run goes on without."""
LOOK_SECONDS = 0.2
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
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None
        self.say: Callable[[str], None] = note
        """Told when the server died and when it is back; from another thread."""

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
        """Return when the server answers; from then on it is kept alive.

        Args:
            limit: seconds to wait at most.

        Raises:
            StageFailed: it ended or did not answer in time.
        """
        self._wait(limit)
        if self._keeper is None:
            # This thread starts the next server and outlives it: the kernel ends a child with the thread that made it.
            self._keeper = threading.Thread(target=self._keep, name="prefect-server", daemon=True)
            self._keeper.start()

    def stop(self) -> None:
        """End the server; does nothing when it has ended."""
        self._closing.set()
        self._end()
        if self._keeper is not None:
            self._keeper.join()

    def _wait(self, limit: float) -> None:
        deadline = time.monotonic() + limit
        attempt = 1
        while not self._healthy():
            if self._process is None or self._process.poll() is not None:
                # Somebody may have taken the port between our look and its start.
                if attempt == ATTEMPTS or "address already in use" not in self._said():
                    raise StageFailed(self._complaint("ended while it started"))
                attempt += 1
                self._start()
            if self._closing.is_set():
                self._end()
                raise StageFailed("the local Prefect server was told to stop while it started")
            if time.monotonic() >= deadline:
                self._end()
                raise StageFailed(self._complaint(f"did not answer within {limit:.0f} s"))
            time.sleep(0.05)

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _keep(self) -> None:
        """Start the server again, on the port that everybody knows, whenever it ends before it is told to."""
        self._wanted_port = self._port
        for left in reversed(range(RESTARTS + 1)):
            while self._process is not None and self._process.poll() is None:
                if self._closing.wait(LOOK_SECONDS):
                    self._end()
            if self._closing.is_set():
                return
            if not left:
                break
            self.say(f"the local Prefect server {self._ending()}; starting it again")
            try:
                self._start()
                self._wait(START_SECONDS)
                self.say("the local Prefect server is back")
            except (StageFailed, OSError) as error:
                if self._closing.is_set():
                    return
                self.say(str(error))
        self.say(f"the local Prefect server ended {RESTARTS + 1} times; the stages go on without it, unrecorded there")

    def _ending(self) -> str:
        code = self._process.returncode if self._process is not None else 0
        return f"was killed by signal {code - 128}" if code and code > 128 else f"ended with {code}"

    def _start(self) -> None:
        self._port = self._wanted_port or free_port()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        launcher = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(GRACE_SECONDS)]
        # Uvicorn itself instead of `prefect server start`, which is one more process that does the same.
        server = [sys.executable, "-P", "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        options = ["--host", HOST, "--port", str(self._port), "--log-level", "warning", "--timeout-keep-alive", "10"]
        with self._log.open("wb" if self._keeper is None else "ab") as log:
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
