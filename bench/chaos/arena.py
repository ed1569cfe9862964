"""A small project that is put back to a known state before each round, and the processes that work in it.

It lies on a small disk of its own (tmpfs) where the system allows one, so that the disk can be filled to the last byte.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.clone import clone_project

DISK_MB = 700
STEPS = ("generate", "validate", "sft", "reward", "judge", "ppo", "dpo", "evaluate")
DEPTHS = {"nothing": 0, "data": 2, "sft": 3, "rewards": 5, "policies": 7}
"""States that a round may start from, each with how many of the steps are finished in it."""
RUN_SECONDS = 240.0
"""A run that takes longer than this, at this size, hangs."""


@dataclass(kw_only=True)
class Attempt:
    """One `ratchet run` and what it said."""

    process: "subprocess.Popen[str]"
    started: float
    log: Path
    document: dict[str, Any] = field(default_factory=dict)
    code: int | None = None

    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait(self, limit: float = RUN_SECONDS) -> int | None:
        """Wait for the end and read what it said; None when it does not end in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.code = self.process.wait(max(0.1, limit - (time.monotonic() - self.started)))
        with contextlib.suppress(OSError, ValueError):
            self.document = json.loads(self.log.with_suffix(".json").read_text(encoding="utf-8"))
        return self.code

    def said(self) -> str:
        """The last lines on the terminal."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


class Arena:
    """The project, its saved states, and the reference that every round has to arrive at."""

    def __init__(self, folder: Path, *, ranks: int = 1, until: str | None = None, own_disk: bool = True) -> None:
        """Prepare nothing yet.

        Args:
            folder: where all of it lies.
            ranks: processes that train the reward model.
            until: the last stage of every run, and then nothing is promoted; None means all of them.
            own_disk: mount a small disk for the project; needs a mount namespace of this process's own.
        """
        self.folder, self.ranks, self.until = folder.resolve(), ranks, until
        self.steps = STEPS[: STEPS.index(until) + 1] if until else STEPS
        self.depths = {name: count for name, count in DEPTHS.items() if count < len(self.steps)}
        self.root, self.states = self.folder / "project", self.folder / "states"
        self.reference: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.own_disk = own_disk and _mounted(self.root)
        self.variables: dict[str, str] = {}
        """What this round adds to the environment."""
        self.server: Any = None
        """The tracking server of this round."""

    def build(self, project: Path) -> None:
        """Run the pipeline once, step by step, and keep the project's state at each depth."""
        shutil.rmtree(self.states, ignore_errors=True)
        _empty(self.root)
        clone_project(project, self.root)
        self.command("use", "tiny", "--yes")
        registry = self.root / "mlflow/registry.yaml"
        registry.write_text(registry.read_text().replace("first_champion: beats_sft", "first_champion: any"))
        if self.ranks > 1:
            params = self.root / "params.yaml"
            head, _, tail = params.read_text().partition("\nreward:")
            line = f"launch: torchrun --nproc-per-node={self.ranks}"
            params.write_text(f"{head}\nreward:" + tail.replace("launch: python", line, 1))
        done = 0
        for depth, count in self.depths.items():
            for stage in self.steps[done:count]:
                self._must(self.run(until=stage))
            shutil.copytree(self.root, self.states / depth, symlinks=True)
            done = count
        self._must(self.run())
        self.reference = outputs(self.root)
        timings = sorted((self.root / ".ratchet/tmp/timings").glob("*.json"))
        self.seconds = {file.stem: float(json.loads(file.read_text())["seconds"]) for file in timings}

    def restore(self, depth: str) -> None:
        """Put the project back, to the byte, to how it was at that depth."""
        _empty(self.root)
        shutil.copytree(self.states / depth, self.root, symlinks=True, dirs_exist_ok=True)
        for log in self.folder.glob("run-*"):
            log.unlink()

    def run(self, *, until: str | None = None) -> Attempt:
        """Start `ratchet run`; its output goes to files outside the project, whose disk may be full.

        Args:
            until: the last stage, else the arena's own.
        """
        log = self.folder / f"run-{time.monotonic_ns()}.log"
        words = ["run", "--json", *self.last(until)]
        with log.open("w") as err, log.with_suffix(".json").open("w") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", *words],
                cwd=self.root, env=self.environment(), stdin=subprocess.DEVNULL, stdout=out,
                stderr=err, text=True, start_new_session=True,
            )  # fmt: skip
        return Attempt(process=process, started=time.monotonic(), log=log)

    def last(self, until: str | None = None) -> list[str]:
        """The words that name the last stage of a run."""
        stage = until or self.until
        return ["--until", stage] if stage else []

    def missing(self, depth: str) -> tuple[str, ...]:
        """Steps that are not done yet at a depth."""
        return self.steps[self.depths[depth] :]

    def command(self, *words: str) -> dict[str, Any]:
        """Run another command of Ratchet that must succeed, and return its document."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words, "--json"],
            cwd=self.root, env=self.environment(), capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"ratchet {' '.join(words)} ended with {done.returncode}: {done.stderr[-1500:]}")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def environment(self) -> dict[str, str]:
        """What every process of the arena gets; a checkpoint is due after every step."""
        theirs = ("RATCHET", "PREFECT", "MLFLOW")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
        folder = str(Path(sys.executable).parent)
        return {
            **kept, "PYTHONPATH": str(self.root), "RATCHET_ROOT": str(self.root), "RATCHET_CHECKPOINT_SECONDS": "0",
            "PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)]), "DO_NOT_TRACK": "true",
            **self.variables,
        }  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All processes that belong to the project: by their environment or the folder that they work in."""
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = process.environ().get("RATCHET_ROOT") == str(self.root) or process.cwd() == str(self.root)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    mine.append(process)
        return mine

    def find(self, wanted: Callable[[list[str], Mapping[str, str]], bool]) -> list[psutil.Process]:
        """Those of the project's processes whose command line and environment fit."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if wanted(process.cmdline(), process.environ()):
                    found.append(process)
        return found

    def kill_everything(self) -> None:
        """End whatever is left, so that one failed round does not spoil the next."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)

    def _must(self, attempt: Attempt) -> None:
        if attempt.wait() != 0:
            raise RuntimeError(f"the undisturbed run ended with {attempt.code}: {attempt.said()}")
        attempt.log.unlink()
        attempt.log.with_suffix(".json").unlink()


def outputs(root: Path) -> dict[str, dict[str, str]]:
    """Hash of each output by path, by stage, as dvc.lock has them."""
    lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    return {name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in lock["stages"].items()}


def _empty(folder: Path) -> None:
    """Remove what is in a folder; the folder itself may be where a disk is mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _mounted(folder: Path) -> bool:
    """Mount a small disk on a folder; False where the system does not allow it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
