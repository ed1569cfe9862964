"""When are two runs equal to the last bit, and how far apart are they when not?

    python -m bench.determinism [--profile tiny] [--stages sft,reward,ppo,dpo] [--changes LABEL,LABEL]

Trains every stage of a profile in a copy of the project, then each again from the same inputs: unchanged, killed
half-way and resumed, beside another stage, on two threads, with the instructions of older processors (a stand-in for
another machine), and with the other library for matrix products. Prints for each pair of runs whether all files are
equal, the largest difference between weights, the norm of the difference by the norm of the weights, and a metric of
both. Exit code 1 where runs differ that are promised to be equal.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from bench.harness import ROOT, Run, markdown, say, stage_command
from tasks.profiles import merge

FOLDER = ROOT / ".ratchet/tmp/bench/determinism"
STAGES = {
    "sft": "test.perplexity", "reward": "test.accuracy", "ppo": "final.score", "dpo": "test.accuracy",
}  # fmt: skip
"""Stages that train, with a metric to show."""
HEAD = ("run against the first", "equal bits", "largest difference", "relative", "metric", "first", "this")
BEFORE = ("generate", "validate")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SSE = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """In what a run differs from the first one."""

    label: str
    equal: bool
    """Whether equal bits are promised."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    kill: bool = False
    beside: bool = False
    """Whether `ppo` and `dpo` run at the same time."""


CHANGES = (
    Change(label="again", equal=True),
    Change(label="killed and resumed", equal=True, kill=True, variables={"RATCHET_CHECKPOINT_SECONDS": "0"}),
    Change(label="ppo and dpo side by side", equal=True, beside=True),
    Change(label="two threads", equal=False, settings={"threads": 2}),
    Change(label="AVX2 instructions", equal=False, variables=AVX2),
    Change(label="SSE4 instructions", equal=False, variables=SSE),
    Change(label="matmul: native", equal=False, settings={"engine": {"matmul": "native"}}),
)


class Copy:
    """A copy of the project's sources and settings with a profile, and the data and models made in it."""

    def __init__(self, folder: Path, profile: str) -> None:
        """Copy; what an earlier run left goes.

        Args:
            folder: of the copy.
            profile: by which all stages are trained.
        """
        self.folder = folder.resolve()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.project = self.folder / "project"
        for name in ("rlhf", "profiles"):
            shutil.copytree(ROOT / name, self.project / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", "params.yaml"):
            shutil.copy(ROOT / name, self.project / name)
        (self.project / "data/base").mkdir(parents=True)
        self.params = merge(self.project, profile).params
        for stage in (*BEFORE, *STAGES):
            self.params[stage] = {**self.params[stage], "threads": 1}
        (self.project / "params.yaml").write_text(yaml.safe_dump(self.params), encoding="utf-8")

    def start(self, stage: str, change: Change | None) -> tuple["subprocess.Popen[bytes]", Path]:
        """Start a stage, in the project itself without a change, else beside it; gives its folder too."""
        if change is None:
            folder, words = self.project, self._words(stage)
        else:
            folder = self.folder / f"{stage}-{change.label.replace(' ', '-').replace(':', '')}"
            folder.mkdir(exist_ok=True)
            params = {**self.params, stage: {**self.params[stage], **change.settings}}
            (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
            run = Run(stage=stage, profile="", settings=change.settings, seed=int(self.params["seed"]))
            words, _ = stage_command(run, folder, self.project, params)
        env = {name: value for name, value in os.environ.items() if name not in {*AVX2, "RATCHET_KEY"}}
        env |= {"PYTHONPATH": str(self.project), "HF_HUB_OFFLINE": "1", **(change.variables if change else {})}
        with (folder / f"{stage}.log").open("ab") as log:
            return subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT), folder

    def _words(self, stage: str) -> list[str]:
        """The stage's command as dvc.yaml has it."""
        block = yaml.safe_load((self.project / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]
        text = str(block["cmd"]).replace("${ppo.start_from}", str(self.params["ppo"]["start_from"]))
        return [sys.executable, *text.split()[2:]]


def finish(process: "subprocess.Popen[bytes]", folder: Path, stage: str) -> None:
    """Wait for a stage.

    Raises:
        RuntimeError: it failed; with its last line.
    """
    if process.wait() != 0:
        lines = (folder / f"{stage}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        raise RuntimeError(f"{stage} in {folder} ended with {process.returncode}: {lines[-1] if lines else 'no word'}")


def kill_half_way(process: "subprocess.Popen[bytes]", folder: Path, stage: str, steps: int) -> None:
    """Kill a stage once it has saved half of its steps.

    Raises:
        RuntimeError: it ended first.
    """
    while True:
        saved = (file.name[:9] for file in (folder / ".ratchet/tmp/checkpoints" / stage).glob("*/[0-9]*.safetensors"))
        if max((int(name) for name in saved), default=0) >= steps // 2:
            process.kill()
            process.wait()
            return
        if process.poll() is not None:
            raise RuntimeError(f"{stage} ended with {process.returncode} before it was killed")
        time.sleep(0.01)


def again(copy: Copy, stage: str, change: Change) -> Path:
    """Run a stage with a change; its outputs lie in `out` of the folder."""
    process, folder = copy.start(stage, change)
    if change.kill:
        with (copy.project / f"data/curves/{stage}.csv").open(encoding="utf-8", newline="") as stream:
            steps = int(list(csv.DictReader(stream))[-1]["step"])
        kill_half_way(process, folder, stage, steps)
        process, folder = copy.start(stage, change)
    finish(process, folder, stage)
    return folder / "out"


def row(copy: Copy, stage: str, change: Change, out: Path) -> tuple[list[str], bool]:
    """A row of the table, and whether the runs are as equal as is promised."""
    first, second = copy.project, out
    names = [f"data/models/{stage}", f"data/metrics/{stage}.json", f"data/curves/{stage}.csv"]
    names += [f"data/samples/{stage}.jsonl"] * (stage != "reward")
    equal = all(digests(first / name) == digests(second / name) for name in names)
    largest, share = distance(first / names[0], second / names[0])
    reports = [json.loads((place / names[1]).read_text(encoding="utf-8")) for place in (first, second)]
    cells = [f"{stage}, {change.label}", "yes" if equal else "no", f"{largest:.1e}", f"{share:.1e}", STAGES[stage]]
    return [*cells, *(f"{lookup(report, STAGES[stage]):.6g}" for report in reports)], equal or not change.equal


def digests(path: Path) -> dict[str, str]:
    """Hash of a file, or of each file below a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def distance(one: Path, other: Path) -> tuple[float, float]:
    """Largest difference between the weights of two models, and the norm of the difference by that of the first."""
    from safetensors.torch import load_file

    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    gaps = {name: first[name].double() - second[name].double() for name in first}
    largest = max(float(gap.abs().max()) for gap in gaps.values())
    square, whole = (sum(float(part.double().square().sum()) for part in parts.values()) for parts in (gaps, first))
    return largest, math.sqrt(square / whole)


def lookup(document: Any, dotted: str) -> float:
    """A number in nested metrics."""
    for part in dotted.split("."):
        document = document[part]
    return float(document)


def machine() -> str:
    """Processor and versions, a line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    processor = found.get("model name", platform.processor())
    if "cpu family" in found:
        processor += f" (family {found['cpu family']}, model {found['model']}, stepping {found['stepping']})"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}; Python {platform.python_version()}, {versions}"


def capability(variables: Mapping[str, str]) -> str:
    """What torch says that it computes with under some variables."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    env = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


def measure(copy: Copy, stages: Sequence[str], changes: Sequence[Change]) -> tuple[list[list[str]], bool]:
    """Rows of the table, and whether all is as promised."""
    rows, good = [], True
    for change in changes:
        asked = [stage for stage in stages if not change.beside or stage in ("ppo", "dpo")]
        if change.beside:
            started = [(stage, *copy.start(stage, change)) for stage in asked]
            outs = []
            for stage, process, folder in started:
                finish(process, folder, stage)
                outs.append(folder / "out")
        else:
            outs = [again(copy, stage, change) for stage in asked]
        for stage, out in zip(asked, outs, strict=True):
            cells, as_promised = row(copy, stage, change, out)
            rows.append(cells)
            good &= as_promised
            sys.stderr.write(f"{' | '.join(cells)}\n")
    return sorted(rows, key=lambda cells: list(STAGES).index(cells[0].partition(",")[0])), good


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(STAGES), help="some of them, in their order")
    parser.add_argument("--profile", default="tiny", help="size of data and models")
    parser.add_argument("--changes", default=",".join(change.label for change in CHANGES), help="some of them")
    parser.add_argument("--keep", action="store_true", help="leave the copy and what was trained in it")
    asked = parser.parse_args()
    stages = [stage for stage in STAGES if stage in asked.stages.split(",")]
    changes = [change for change in CHANGES if change.label in asked.changes.split(",")]
    needed = {"sft", *stages} | ({"reward"} if "ppo" in stages else set())
    copy, begun = Copy(FOLDER / asked.profile, asked.profile), time.monotonic()
    for stage in (*BEFORE, *(stage for stage in STAGES if stage in needed)):
        finish(*copy.start(stage, None), stage)
    rows, good = measure(copy, stages, changes)
    say(f"{machine()}\n")
    say(
        markdown(
            ["run against the first", "equal bits", "largest difference", "relative", "metric", "first", "this"], rows
        )
    )
    say(f"\ntorch computes with {capability(AVX2)} and {capability(SSE)} in the runs with older instructions")
    say(f"{time.monotonic() - begun:.0f} s; {'all as promised' if good else 'NOT as promised'}")
    if not asked.keep:
        with contextlib.suppress(OSError):
            shutil.rmtree(copy.folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
