"""Real stages of two-layer models that are hit at a given write: killed there, or left without room on the disk.

The stage is `python -m rlhf.launch`, as DVC runs it. A `sitecustomize` in its path hears of every file that it opens
for writing, renames or removes in its folder (Python's audit events), notes it, and hits at the one that was asked for.
"""

import dataclasses
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.rlhf.recipes import test_sft as sft
from tests.rlhf.recipes import tiny_dpo, tiny_ppo, tiny_reward

ROOT = Path(__file__).parents[2]
HOOK = """
import os, re, signal, sys

HERE, LOG, BUSY = os.getcwd(), os.environ.get("TRIAL_EVENTS"), []
PATTERN, _, COUNT = os.environ.get("TRIAL_HIT", "").rpartition("@")
KINDS = {f"os.{name}": name for name in ("rename", "remove", "mkdir", "rmdir")} | {"shutil.rmtree": "rmtree"}
SEEN = 0

def hear(event, arguments):
    global SEEN
    if event == "open":
        if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
    elif event not in KINDS:
        return
    if BUSY or not isinstance(arguments[0], (str, os.PathLike)):
        return
    path = os.path.abspath(os.fspath(arguments[0]))
    if not path.startswith(HERE + "/") or path == LOG:
        return
    BUSY.append(1)
    line = KINDS.get(event, "open") + " " + os.path.relpath(path, HERE)
    os.write(STREAM, (line + "\\n").encode())
    if PATTERN and re.search(PATTERN, line):
        SEEN += 1
        if SEEN == int(COUNT):
            if os.environ["TRIAL_BLOW"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            fill()
    BUSY.clear()

def fill():
    with open("filler", "wb", buffering=0) as stream:
        for size in (2**16, 2**10, 1):
            try:
                while stream.write(b"x" * size) == size:
                    pass
            except OSError:
                pass

if LOG and os.environ.get("RATCHET_LAUNCHED") == "1":
    if size := int(os.environ["TRIAL_LIMIT"]):
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    STREAM = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.addaudithook(hear)
"""
OUTPUTS = {"model": "out/model", "metrics": "out/metrics.json", "curves": "out/curves.csv"}
SAMPLES = {"samples": "out/samples.jsonl"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How an attempt ended."""

    code: int
    said: str
    events: list[str]
    """Writes, in order: open, rename, remove, mkdir, rmtree or rmdir, and the path in the stage's folder."""


class Trial:
    """A stage in a folder of its own."""

    def __init__(self, folder: Path, kind: str, **changes: Any) -> None:
        """Write inputs and parameters.

        Args:
            folder: to make, or one that was made before.
            kind: one of `KINDS`.
            **changes: of the stage's settings.
        """
        self.folder, (self.stage, self.recipe, config, write, options) = folder.resolve(), KINDS[kind]
        self.config = dataclasses.replace(config, **changes)
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            paths = write(self.folder / "in")
            self.paths = {name: str(path.relative_to(self.folder / "in")) for name, path in paths.items()}
            (self.folder / "hook").mkdir()
            (self.folder / "hook/sitecustomize.py").write_text(HOOK)
            (self.folder / "paths.json").write_text(json.dumps(self.paths))
        self.paths = json.loads((self.folder / "paths.json").read_text())
        self.outputs = {**OUTPUTS, **options}
        self.tell()

    def tell(self, **changes: Any) -> None:
        """Write params.yaml, with settings changed."""
        section = dataclasses.asdict(dataclasses.replace(self.config, **changes))
        params = {"seed": 1, self.stage: {**section, "threads": 1, "launch": "python"}}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(params))))

    def run(self, *, blow: str = "kill", at: str = "", count: int = 1, every: str = "0", limit: int = 0) -> Ended:
        """Run an attempt.

        Args:
            blow: "kill" or "fill" (the disk).
            at: pattern of the event at which it comes; none comes without one.
            count: at which of these events.
            every: seconds between checkpoints.
            limit: bytes that a file may have, by the system's own limit; 0: any number.
        """
        words = [sys.executable, "-m", "rlhf.launch", self.stage, "--recipe", self.recipe]
        for name, place in self.paths.items():
            words += [f"--{name}", f"in/{place}"]
        for name, place in self.outputs.items():
            words += [f"--{name}", place]
        log = self.folder / "events.log"
        log.unlink(missing_ok=True)
        env = {**os.environ, "PYTHONPATH": f"{self.folder / 'hook'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
        env |= {"RATCHET_CHECKPOINT_SECONDS": every, "TRIAL_EVENTS": str(log), "CUDA_VISIBLE_DEVICES": ""}
        env |= {"TRIAL_HIT": f"{at}@{count}" if at else "", "TRIAL_BLOW": blow, "TRIAL_LIMIT": str(limit)}
        done = subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        events = log.read_text().splitlines() if log.exists() else []
        return Ended(code=done.returncode, said=done.stdout + done.stderr, events=events)

    def written(self) -> dict[str, str]:
        """Hash of every file outside the folder of running state that is no input."""
        skip = {".ratchet", "in", "hook", "params.yaml", "paths.json", "events.log"}
        files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
        names = {str(file.relative_to(self.folder)): file for file in files}
        return {
            name: hashlib.sha256(file.read_bytes()).hexdigest()
            for name, file in names.items()
            if name.partition("/")[0] not in skip
        }

    def live(self) -> list[dict[str, float]]:
        """Live rows without their clock."""
        rows = []
        for file in (self.folder / f".ratchet/tmp/live/{self.stage}").glob("*.jsonl"):
            rows += [json.loads(line) for line in file.read_text().splitlines()]
        return [{name: value for name, value in row.items() if name != "time"} for row in rows]

    def checkpoints(self) -> list[Path]:
        """Whatever lies among the checkpoints."""
        return sorted((self.folder / ".ratchet/tmp/checkpoints" / self.stage).glob("*/*"))


def pick(draws: random.Random, events: Sequence[str], pattern: str) -> dict[str, Any]:
    """One of the events that fit, as arguments of `run`."""
    count = sum(bool(re.search(pattern, event)) for event in events)
    return {"at": pattern, "count": draws.randint(min(2, count), count)}


def _reward(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = tiny_reward.write_inputs(folder)
    return {**paths, "rankings": folder / "no_rankings"}


def _sft(folder: Path) -> dict[str, Path]:
    (folder / "base").mkdir(parents=True)
    return {"demonstrations": sft.write_demonstrations(folder / "demonstrations"), "base": folder / "base"}


def _kto(folder: Path) -> dict[str, Path]:
    return tiny_dpo.write_inputs(folder)


KINDS: Mapping[str, tuple[str, str, Any, Callable[[Path], dict[str, Path]], dict[str, str]]] = {
    "sft": ("sft", "sft", dataclasses.replace(sft.CONFIG, epochs=1), _sft, SAMPLES),
    "reward": ("reward", "reward", dataclasses.replace(tiny_reward.CONFIG, epochs=1, members=2), _reward, {}),
    "judge": ("judge", "reward", dataclasses.replace(tiny_reward.CONFIG, epochs=1, lora_rank=2), _reward, {}),
    "ppo": (
        "ppo", "ppo",
        dataclasses.replace(
            tiny_ppo.CONFIG, kl_controller="adaptive", objective="clipped_penalised", step_kl_target=0.01,
            curriculum="easy_first", ptx_coef=0.1, ptx_batch=2,
        ), tiny_ppo.write_inputs, SAMPLES,
    ),
    "dpo": ("dpo", "dpo", dataclasses.replace(tiny_dpo.CONFIG, nll_coef=0.1), tiny_dpo.write_inputs, SAMPLES),
    "kto": ("dpo", "dpo", dataclasses.replace(tiny_dpo.CONFIG, objective="kto", lora_rank=2), _kto, SAMPLES),
}  # fmt: skip
"""By name: stage, recipe, settings, what writes the inputs, and outputs beside the usual ones."""
