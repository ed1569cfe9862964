"""Seconds from the start of a stage's process to its first row of live numbers, and what it imports on the way.

    python -m bench.startup                        every training stage of this project, which must be a finished one
    python -m bench.startup --stages sft,dpo --repeats 5
    python -m bench.startup --imports sft          CPU milliseconds of its imports by package, the largest first

A stage runs in a folder of its own with the project's inputs and very little work, and is stopped at its first row; a
stage without rows runs to its end. CPU seconds count the process and its children. The median of the repeats is shown.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

from bench.harness import ROOT, Run, markdown, say, stage_command

LITTLE: dict[str, dict[str, Any]] = {
    "generate": {"demonstrations": 200, "pairs": 200, "prompts": 200, "unlike_prompts": 10, "probes_per_fact": 2},
    "validate": {},
    "sft": {"epochs": 0.02},
    "reward": {"max_pairs": 64},
    "judge": {"max_pairs": 64},
    "ppo": {"updates": 2, "warmup_updates": 0, "rollouts": 4, "minibatch": 4, "micro_batch": 4, "max_new_tokens": 8,
            "sample_every": 10},
    "dpo": {"max_pairs": 64},
    "evaluate": {"dev_prompts": 4, "test_prompts": 4, "unlike_prompts": 0, "held_out_records": 8, "best_of": [1],
                 "best_of_prompts": 2, "resamples": 100, "max_new_tokens": 8},
}  # fmt: skip
TIMED = """
import sys, time, importlib._bootstrap_external as loaders
own, stack = {}, []
def timed(kind):
    real = kind.exec_module
    def exec_module(self, module):
        began = time.process_time()
        stack.append(0.0)
        try:
            return real(self, module)
        finally:
            took = time.process_time() - began
            package = ".".join(module.__name__.split(".")[:2])
            own[package] = own.get(package, 0.0) + took - stack.pop()
            if stack:
                stack[-1] += took
    kind.exec_module = exec_module
timed(loaders.SourceFileLoader)
timed(loaders.ExtensionFileLoader)
from rlhf import quick_import
quick_import.install()
__import__("rlhf.recipes." + sys.argv[1])
for package, took in sorted(own.items(), key=lambda item: -item[1])[:25]:
    print(f"{1000 * took:.0f} {package}")
print(f"{1000 * sum(own.values()):.0f} together, {len(sys.modules)} modules")
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(LITTLE))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--project", type=Path, default=ROOT, help="a finished project")
    parser.add_argument("--imports", metavar="RECIPE", help="only show what a recipe imports")
    arguments = parser.parse_args()
    if arguments.imports:
        subprocess.run([sys.executable, "-c", TIMED, arguments.imports], cwd=ROOT, check=True)
        return
    rows = []
    for stage in arguments.stages.split(","):
        found = [first_row(stage, arguments.project.resolve()) for _ in range(arguments.repeats)]
        wall, cpu = (median(values) for values in zip(*found, strict=True))
        rows.append([stage, f"{wall:.1f}", f"{cpu:.1f}"])
    say(markdown(["stage", "wall s to the first row", "CPU s"], rows))


def first_row(stage: str, project: Path) -> tuple[float, float]:
    """Start a stage and stop it at its first row.

    Returns:
        Seconds of the wall clock and of CPU until then.

    Raises:
        SystemExit: the stage failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
        params[stage] |= LITTLE[stage]
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        words, _ = stage_command(Run(stage=stage, profile="", settings={}, seed=1), folder, project, params)
        env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        env.pop("RATCHET_KEY", None)
        before, started, cpu = os.times(), time.monotonic(), 0.0
        with (folder / "log.txt").open("wb") as log:
            process = psutil.Popen(words, cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
            while process.poll() is None and not _has_row(folder, stage):
                time.sleep(0.01)
        wall = time.monotonic() - started
        if process.poll() is None:
            times = process.cpu_times()
            cpu = times.user + times.system
            process.kill()
            process.wait()
            return wall, cpu
        if process.returncode:
            sys.exit(f"{stage}: {(folder / 'log.txt').read_text(encoding='utf-8', errors='replace')[-500:]}")
        after = os.times()
        return wall, after.children_user + after.children_system - before.children_user - before.children_system


def _has_row(folder: Path, stage: str) -> bool:
    return any(file.stat().st_size for file in (folder / ".ratchet/tmp/live" / stage).glob("*.jsonl"))


if __name__ == "__main__":
    main()
