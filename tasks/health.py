"""Checks of the project: settings, git, DVC, remote, what must be writable, MLflow, Prefect."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from rlhf.errors import BadInput
from tasks.diagnosis import Check
from tasks.settings import tracking_uri

TIMEOUT = 5.0
"""Seconds that a server has to answer."""

WRITABLE = ("data", "data/raw", ".ratchet/state", ".ratchet/tmp")


def settings(root: Path) -> Check:
    """Every stage's section of params.yaml, loaded as the stage will load it, and the files that it names."""
    from rlhf.config import read_params
    from tasks.profiles import check, waiting_files

    try:
        params = read_params(root / "params.yaml")
        check(root, params)
    except BadInput as error:
        return Check(
            name="params.yaml",
            state="fail",
            found=str(error),
            remedy="Correct that line, or start again from the defaults with `ratchet use default`.",
        )
    missing = waiting_files(root, params)
    if missing:
        return Check(name="params.yaml", state="fail", found=f"names {missing[0].split(';')[0]}", remedy=missing[0])
    return Check(name="params.yaml", state="ok", found=f"{len(params) - 1} sections, all valid")


def git(root: Path) -> Check:
    """Git, and the state of the repository around the project."""
    if shutil.which("git") is None:
        return Check(name="git", state="fail", found="not found", remedy="Install git; every run records its commit.")
    inside = _git(root, "rev-parse", "--show-toplevel")
    if inside is None:
        return Check(name="git", state="fail", found="no repository", remedy="Run `git init` and commit the project.")
    commit = _git(root, "rev-parse", "--short", "HEAD")
    if commit is None:
        return Check(
            name="git", state="warn", found="no commit yet", remedy="Commit the project, so it can be rebuilt."
        )
    changed = len((_git(root, "status", "--porcelain") or "").splitlines())
    since = f", {changed} file(s) changed since" if changed else ""
    return Check(name="git", state="ok", found=f"at {commit}{since}")


def dvc(root: Path) -> Check:
    """DVC, and whether it can read the stage graph."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            stages = len(repo.index.stages)
            repo.check_graph(repo.index.stages)
    except DvcException as error:
        return Check(
            name="dvc",
            state="fail",
            found=" ".join(str(error).split()),
            remedy="Correct dvc.yaml, or run `dvc init` where .dvc is missing; `dvc doctor` tells more.",
        )
    from dvc import __version__

    lock = "" if (root / "dvc.lock").is_file() else "; nothing has run yet"
    return Check(name="dvc", state="ok", found=f"{__version__}, {stages} stages and raw files{lock}")


def remote(root: Path) -> Check:
    """Whether models are kept anywhere but on this machine."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        name = repo.config["core"].get("remote")
        url = repo.config["remote"].get(name, {}).get("url") if name else None
    if url:
        return Check(name="remote", state="ok", found=f"{name}: {_without_secret(url)}")
    return Check(
        name="remote",
        state="warn",
        found="none: data and models exist on this machine only",
        remedy="`dvc remote add -d NAME URL` (S3, GCS, Azure, SSH or a folder) keeps a second copy.",
    )


def cache(root: Path) -> Check:
    """Every byte of what dvc.lock and the .dvc files name, as DVC's cache holds it."""
    from dvc.repo import Repo

    from tasks.cache_check import all_damage

    with Repo(str(root)) as repo:
        outs = [out for stage in repo.index.stages for out in stage.outs if out.use_cache and out.hash_info]
        wanted = [(os.path.relpath(out.fs_path, root), str(out.hash_info.value)) for out in outs]
    found = all_damage(root, wanted, deep=True)
    damaged = [damage for damage in found if not damage.nowhere]
    if not damaged:
        count = len(wanted) - len(found)
        return Check(name="cache", state="ok", found=f"{count} outputs and data folders, every byte intact")
    lost = [damage for damage in damaged if damage.source is None]
    return Check(
        name="cache",
        state="fail" if lost else "warn",
        found="; ".join(f"{damage.path} is {damage}" for damage in damaged),
        remedy="`ratchet run` mends what has a copy and runs the stages of the rest; `dvc fetch` brings back raw data.",
    )


def writable(root: Path) -> Check:
    """Folders that a run writes to, by writing to them."""
    for name in WRITABLE:
        folder = root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder) as file:
                file.write(b"x")
        except OSError as error:
            return Check(
                name="writable",
                state="fail",
                found=f"{name}: {error.strerror}",
                remedy=f"Make {name} writable for this user, and see that the disk is neither full nor read-only.",
            )
    return Check(name="writable", state="ok", found=", ".join(WRITABLE))


def mlflow_store(root: Path) -> Check:
    """The tracking store: the SQLite file is opened, a server is asked for its health."""
    uri = tracking_uri(root)
    if uri.startswith(("http://", "https://")):
        problem = _ask(f"{uri.rstrip('/')}/health")
        if problem is None:
            return Check(name="mlflow", state="ok", found=f"server at {_without_secret(uri)}")
        return Check(
            name="mlflow",
            state="warn",
            found=f"{_without_secret(uri)} does not answer: {problem}",
            remedy="Training works without it; start the server or unset MLFLOW_TRACKING_URI, then `ratchet publish`.",
        )
    if not uri.startswith("sqlite:///"):
        return Check(name="mlflow", state="ok", found=f"{_without_secret(uri)} (not tried from here)")
    file = Path(uri.removeprefix("sqlite:///"))
    if not file.is_file():
        return Check(name="mlflow", state="ok", found=f"{file.name}: made by the first publish")
    return _sqlite(file)


def _sqlite(file: Path) -> Check:
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=1.0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        busy = "locked" in str(error)
        return Check(
            name="mlflow",
            state="warn" if busy else "fail",
            found=f"{file.name}: {error}",
            remedy="Another program writes to it; wait for it to end."
            if busy
            else f"Move {file} away and run `ratchet publish`: it is written anew from dvc.lock.",
        )
    finally:
        connection.close()
    if verdict != "ok":
        return Check(
            name="mlflow",
            state="fail",
            found=f"{file.name}: {verdict}",
            remedy=f"Move {file} away and run `ratchet publish`: it is written anew from dvc.lock.",
        )
    return Check(name="mlflow", state="ok", found=f"{file.name}, {file.stat().st_size / 1e6:.1f} MB")


def prefect_server() -> Check:
    """The Prefect server that PREFECT_API_URL names, or a free port for one of our own."""
    uri = os.environ.get("PREFECT_API_URL")
    if uri:
        problem = _ask(f"{uri.rstrip('/')}/health")
        if problem is None:
            return Check(name="prefect", state="ok", found=f"server at {_without_secret(uri)}")
        return Check(
            name="prefect",
            state="fail",
            found=f"{_without_secret(uri)} does not answer: {problem}",
            remedy="Start that server, or unset PREFECT_API_URL: then `ratchet run` brings its own.",
        )
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", 0))
        except OSError as error:
            return Check(
                name="prefect",
                state="fail",
                found=f"no port of 127.0.0.1 can be bound: {error.strerror}",
                remedy="Allow this user to open loopback ports; `dvc repro` trains without any server.",
            )
        port = probe.getsockname()[1]
    return Check(name="prefect", state="ok", found=f"`ratchet run` starts its own server (port {port} is free)")


def _ask(url: str) -> str | None:
    """Ask a server for its health; None when it answers, else why not."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        # It answers, and wants a login that the client, not this check, knows.
        return None if error.code in (401, 403) else f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)


def _without_secret(url: str) -> str:
    """Leave out a user name and password."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if mark else url


def _git(root: Path, *words: str) -> str | None:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
