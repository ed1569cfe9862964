"""A small stage on several ranks that is hit and started again: what `bench.ranks` and `bench.two_nodes` share.

The stage is `sft` from scratch on 64 demonstrations, with a checkpoint after every step.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.harness import ROOT

SECTION: dict[str, Any] = {
    "base_model": "scratch", "revision": None, "vocab_size": 300, "hidden": 32, "layers": 2, "heads": 2,
    "intermediate": 64, "context": 48, "learning_rate": 1e-2, "batch_size": 8, "micro_batch": None, "epochs": 6.0,
    "warmup_fraction": 0.1, "final_lr_fraction": 0.0, "max_tokens": 40, "max_grad_norm": 1.0, "precision": "float32",
    "lora_rank": 0, "lora_alpha": 16.0, "samples": 0, "max_new_tokens": 8, "threads": 1,
}  # fmt: skip
PATHS = {"base": "base", "model": "model", "metrics": "sft.json", "curves": "sft.csv", "samples": "samples.jsonl"}
ROWS = {"train": 64, "dev": 4, "test": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a stage ended."""

    code: int
    seconds: float
    """Since the blow, or since the start where there was none."""
    last_line: str


class Trial:
    """One folder in which the stage runs."""

    def __init__(self, folder: Path, *, launch: str, settings: Mapping[str, Any] | None = None) -> None:
        """Write data and parameters.

        Args:
            folder: where; made when missing, with checkpoints kept when not.
            launch: the launch line.
            settings: keys of the section that differ, `engine` among them.
        """
        self.folder = folder.resolve()
        (self.folder / "demonstrations").mkdir(parents=True, exist_ok=True)
        for split, count in ROWS.items():
            rows = [
                {"prompt": [{"role": "user", "content": f"Order {n % 7}?"}], "response": f"I found order {n % 5}."}
                for n in range(count)
            ]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.folder / "demonstrations" / f"{split}.jsonl").write_text(text, encoding="utf-8")
        self.tell(launch=launch, **(settings or {}))

    def tell(self, **settings: Any) -> None:
        """Write params.yaml with these settings over the usual ones."""
        params = {"seed": 1, "sft": {**SECTION, **settings}}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    def start(self, prefix: Sequence[str] = (), **variables: str) -> "subprocess.Popen[bytes]":
        """Start the stage; what it says goes to log.txt.

        Args:
            prefix: command that runs it, such as `ip netns exec NAME`.
            **variables: of the environment.
        """
        words = [sys.executable, "-m", "rlhf.launch", "sft", "--demonstrations", "demonstrations"]
        for name, place in PATHS.items():
            words += [f"--{name}", place]
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        env |= {"RATCHET_CHECKPOINT_SECONDS": "0", **variables}
        with (self.folder / "log.txt").open("wb") as log:
            return subprocess.Popen([*prefix, *words], cwd=self.folder, env=env, stdout=log, stderr=subprocess.STDOUT)

    def run(self) -> Ended:
        """Run the stage to its end."""
        return self.wait(self.start(), time.monotonic())

    def hit(self, process: "subprocess.Popen[bytes]", *, rank: int, step: int, signal: int) -> float:
        """Send a signal to a rank as soon as a step is saved on it; returns when, in seconds of the monotonic clock."""
        while not (pid := self.pid(rank)) or self.saved(rank) < step:
            if process.poll() is not None:
                raise RuntimeError(f"the stage ended with {process.returncode} before step {step}: {self.last_line()}")
            time.sleep(0.005)
        os.kill(pid, signal)
        return time.monotonic()

    def wait(self, process: "subprocess.Popen[bytes]", since: float) -> Ended:
        """Wait for the end."""
        code = process.wait()
        return Ended(code=code, seconds=time.monotonic() - since, last_line=self.last_line())

    def pid(self, rank: int) -> int | None:
        """Process of a rank of a stage under a launcher that runs now; with plain python, of the stage."""
        notes = list((self.folder / ".ratchet/tmp/ranks").glob(f"*/{rank}.json"))
        return int(json.loads(notes[0].read_text(encoding="utf-8"))["pid"]) if notes else None

    def saved(self, rank: int, world: int = 2) -> int:
        """Newest step in a checkpoint of a rank of so many; 0 without one."""
        place = "" if world == 1 else f"ranks-{world}/{rank}/"
        found = (self.folder / ".ratchet/tmp/checkpoints/sft").glob(f"*/{place}[0-9]*.safetensors")
        return max((int(file.name.partition("-")[0]) for file in found), default=0)

    def log(self) -> str:
        """All that the stage said last time."""
        return (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def last_line(self) -> str:
        """The stage's last words."""
        return next((line for line in reversed(self.log().splitlines()) if line.strip()), "")


def distance(one: Path, other: Path) -> float:
    """Largest difference between the weights of two model folders."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model/model.safetensors") for folder in (one, other))
    if first.keys() != second.keys():
        raise ValueError(f"{one} and {other} hold different weights: {sorted(first.keys() ^ second.keys())}")
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
