"""`ratchet ui`: the Prefect and MLflow pages of this project's own stores, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from flows.errors import CommandError
from flows.output import note, show
from rlhf.errors import one_line

HOST = "127.0.0.1"
START_SECONDS = 120.0


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "ui",
        help="the Prefect and MLflow pages",
        description="Serve both pages on this machine only; Ctrl-C ends them.",
    )
    parser.add_argument("--prefect-port", type=int, default=4200, metavar="PORT", help="default 4200")
    parser.add_argument("--mlflow-port", type=int, default=5000, metavar="PORT", help="default 5000")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from flows.server import LocalServer, server_is_needed
    from tasks.settings import project_root, tracking_uri

    root = project_root()
    store = tracking_uri(root)
    pages: dict[str, str] = {}
    own_mlflow, own_prefect = not store.startswith("http"), server_is_needed()
    if own_mlflow:
        _require_free(args.mlflow_port, "--mlflow-port")
    if own_prefect:
        _require_free(args.prefect_port, "--prefect-port")
    with ExitStack() as running:
        mlflow: subprocess.Popen[bytes] | None = None
        if not own_mlflow:
            pages["mlflow"] = one_line(store)
        else:
            mlflow = _start_mlflow(root, store, args.mlflow_port)
            running.callback(_stop, mlflow)
            pages["mlflow"] = f"http://{HOST}:{args.mlflow_port}"
        if own_prefect:
            server = running.enter_context(LocalServer(root, port=args.prefect_port))
            server.wait()
            pages["prefect"] = server.ui_url
        else:
            pages["prefect"] = one_line(os.environ["PREFECT_API_URL"].removesuffix("/api"))
        if mlflow is not None:
            _wait(mlflow, f"{pages['mlflow']}/health", root)
        show(args, pages, [f"Prefect  {pages['prefect']}", f"MLflow   {pages['mlflow']}"])
        note("Ctrl-C ends both")
        _until_interrupted(mlflow)
    return 0


def _require_free(port: int, option: str) -> None:
    if not 0 < port < 2**16:
        raise CommandError(f"{option} is {port}, wanted a port number from 1 to {2**16 - 1}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise CommandError(f"port {port} is taken ({error.strerror}); choose another with {option}") from error


def _start_mlflow(root: Path, store: str, port: int) -> subprocess.Popen[bytes]:
    from tasks import supervisor
    from tasks.mlflow_store import connect
    from tasks.settings import environment, state_dir, tmp_dir

    connect(root)  # makes the tables when the store is new
    log = tmp_dir(root) / "logs" / "mlflow-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), "5.0"]
    artifacts = str(state_dir(root) / "mlflow-artifacts")
    command = ["-P", "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
    # One worker and no job runners: a page for one person needs half a gigabyte, not more.
    options = ["--workers", "1", "--artifacts-destination", artifacts]
    with log.open("wb") as stream:
        return subprocess.Popen(
            [*launcher, sys.executable, *command, *options],
            cwd=root,
            # Not on the command line, which everybody on this machine can read: an address may hold a password.
            env={
                **environment(root),
                "MLFLOW_BACKEND_STORE_URI": store,
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            },
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise CommandError("the MLflow page did not start; see .ratchet/tmp/logs/mlflow-server.log", exit_code=1)


def _until_interrupted(process: subprocess.Popen[bytes] | None) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        while process is None or process.poll() is None:
            time.sleep(0.5)
    except KeyboardInterrupt:
        return
    raise CommandError("the MLflow server ended; see .ratchet/tmp/logs/mlflow-server.log", exit_code=1)
