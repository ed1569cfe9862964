"""What has to be true at the end of a round, whatever was killed, filled or torn on the way."""

import fcntl
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil

from bench.chaos.arena import Arena, outputs

GONE_SECONDS = 10.0
VERSIONS = """
    SELECT stage.value, hash.value, COUNT(*) FROM model_version_tags stage
    JOIN model_version_tags hash ON stage.name = hash.name AND stage.version = hash.version
    JOIN model_versions version ON version.name = stage.name AND version.version = stage.version
    WHERE version.current_stage != 'Deleted_Internal'
    AND stage.key = 'ratchet.stage' AND hash.key = 'ratchet.output_md5' GROUP BY 1, 2
"""
"""How many versions each output has, by stage and hash."""
UNTOLD = """
    SELECT name, version FROM model_versions WHERE current_stage != 'Deleted_Internal'
    AND (name, version) NOT IN (SELECT name, version FROM model_version_tags WHERE key = 'ratchet.output_md5')
"""
"""Versions that do not say which output they are."""
MODELS = ("sft", "reward", "judge", "ppo", "dpo")


def left_behind(arena: Arena) -> list[str]:
    """Processes that are still there ten seconds after a run has ended, told by what they are."""
    deadline = time.monotonic() + GONE_SECONDS
    while (left := arena.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [f"process left behind: {_told(process)}" for process in left]


def _told(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:8])
    except psutil.Error:
        return "(it ended meanwhile)"


def faults_of(arena: Arena) -> list[str]:
    """Everything that is not as it has to be after the last run of a round; empty when all is well."""
    root = arena.root
    found = [*_hashes(arena), *_registry(root, arena), *_locks(root), *_leftovers(root), *_git(root)]
    found += [] if arena.until else _history(root)
    status = subprocess.run(
        [sys.executable, "-P", "-m", "dvc", "status", "--json", *arena.steps],
        cwd=root, env=arena.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if status.returncode != 0 or json.loads(status.stdout or "null") != {}:
        found.append(f"dvc status is not clean: {(status.stdout + status.stderr).strip()[:300]}")
    again = arena.command("run", *arena.last())
    if again["stages"]:
        found.append("a further run found something to do")
    return found


def _hashes(arena: Arena) -> Iterator[str]:
    made = outputs(arena.root)
    for stage, wanted in arena.reference.items():
        for path, md5 in wanted.items():
            got = made.get(stage, {}).get(path)
            if got != md5:
                yield f"{stage}: {path} is {got}, the undisturbed run made {md5}"


def _registry(root: Path, arena: Arena) -> Iterator[str]:
    with _read_only(root / ".ratchet/state/mlflow.db") as store:
        running = store.execute("SELECT name FROM runs WHERE status = 'RUNNING'").fetchall()
        rows = store.execute(VERSIONS).fetchall()
        untold = store.execute(UNTOLD).fetchall()
    yield from (f"MLflow run {name} is RUNNING" for (name,) in running)
    yield from (f"version {name}/{version} has no output hash" for name, version in untold)
    versions = {(stage, md5): count for stage, md5, count in rows}
    wanted = {(stage, arena.reference[stage][f"data/models/{stage}"]) for stage in MODELS if stage in arena.steps}
    yield from (f"{stage} {md5[:8]} has {versions.get((stage, md5), 0)} versions, not 1" for stage, md5 in wanted
                if versions.get((stage, md5)) != 1)  # fmt: skip
    yield from (f"{stage} {md5[:8]} is registered, though no finished stage has it" for stage, md5 in versions
                if (stage, md5) not in wanted)  # fmt: skip
    prefect = root / ".ratchet/state/prefect/prefect.db"
    if prefect.is_file():
        with _read_only(prefect) as store:
            names = store.execute("SELECT name FROM flow_run WHERE state_type IN ('RUNNING', 'CANCELLING', 'PENDING')")
            yield from (f"Prefect's flow run {name!r} is not over" for (name,) in names.fetchall())


def _locks(root: Path) -> Iterator[str]:
    """Locks that somebody still holds; nobody is there any more."""
    for file in [root / ".ratchet/tmp/run.lock", *(root / ".ratchet/tmp/slots").glob("*"), root / ".dvc/tmp/lock"]:
        if not file.is_file():
            continue
        handle = os.open(file, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield f"{file.relative_to(root)} is held"
        finally:
            os.close(handle)


def _leftovers(root: Path) -> Iterator[str]:
    for folder in ("checkpoints", "failures"):
        for file in (root / ".ratchet/tmp" / folder).rglob("*"):
            if file.is_file():
                yield f"left over: {file.relative_to(root)}"
    for file in [*root.glob("*.tmp"), *root.glob("data/**/*.tmp"), *root.glob("data/**/*.part")]:
        yield f"left over: {file.relative_to(root)}"


def _history(root: Path) -> Iterator[str]:
    """The champion of the registry is the one whose promotion the history tells last, and was promoted once."""
    lines = (root / ".ratchet/state/history.jsonl").read_text(encoding="utf-8").splitlines()
    moves = [json.loads(line) for line in lines]
    with _read_only(root / ".ratchet/state/mlflow.db") as store:
        found = store.execute("SELECT version FROM registered_model_aliases WHERE alias = 'champion'").fetchall()
    champions = [str(version) for (version,) in found]
    if len(champions) != 1:
        yield f"there are {len(champions)} champions"
    elif [move["after"] for move in moves] != champions:
        yield f"the history tells {[move['after'] for move in moves]}, the registry has {champions}"


def _git(root: Path) -> Iterator[str]:
    """Neither the user's commit nor the index was touched, and git has no lock left."""
    said = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=root, capture_output=True, text=True, check=False
    )
    changed = {line[3:] for line in said.stdout.splitlines()}
    if said.returncode != 0 or changed - {"params.yaml", "mlflow/registry.yaml"}:
        yield f"git status: {sorted(changed)} {said.stderr.strip()}"
    yield from (f"git lock left: {file.name}" for file in (root / ".git").glob("*.lock"))


def _read_only(path: Path) -> "closing[sqlite3.Connection]":
    return closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10))
