"""Put things right when a run is killed: `python -I -S guard.py COMMAND...`, a process that outlives the run.

It sleeps on a pipe whose other end only the run holds. When the run ends in order it says so first, and the guard goes
without a word; when the pipe closes without that, whatever killed the run, the guard becomes COMMAND. Only the standard
library is imported, without `site`, so that waiting costs a few megabytes.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

DONE = b"done"


class Guard:
    """The run's side; a context manager. Left by Ctrl-C or the like, the command is executed just as after a kill."""

    def __init__(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        """Prepare; nothing is started yet.

        Args:
            command: what to execute if this process dies; program and arguments.
            cwd: its working folder.
            env: its whole environment.
            log: file that takes what it says.
        """
        self._command, self._cwd, self._env, self._log = list(command), cwd, dict(env), log
        self._process: subprocess.Popen[bytes] | None = None
        self.needed = False
        """Set to have the command executed although the run ends in order."""

    def __enter__(self) -> "Guard":
        """Start the guard."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, *self._command],
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # what is sent to our group, from a terminal or a Prefect worker, spares it
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Send the guard home, or to work; waits for it only in the first case."""
        assert self._process is not None  # entered
        assert self._process.stdin is not None
        quiet = not self.needed and (kind is None or issubclass(kind, Exception))
        try:
            if quiet:
                self._process.stdin.write(DONE)
            self._process.stdin.close()
        except BrokenPipeError:  # somebody killed the guard
            pass
        if quiet:
            self._process.wait()
        else:
            self._process.returncode = 0  # it works on without us; keeps Python from warning of a child left behind


def main(command: Sequence[str]) -> None:
    """Wait for the run's word or its death."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    said = b""
    while part := os.read(0, 64):
        said += part
    if said == DONE:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    main(sys.argv[1:])
