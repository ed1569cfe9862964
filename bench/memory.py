"""Measured peak memory on a CPU beside what `ratchet size` says, each case in a process of its own.

    python -m bench.memory [--cases sft-8m dpo-8m ...] [--json FILE]

A case builds random models, takes two steps (the second meets the optimizer's state) and reports two peaks: of the
tensors, as torch's profiler counts every allocation; and of the process, as the kernel counts resident pages, less what
it held before the models were built. Rows have full length and there is one rank, so what is checked is the count of
weights, gradients, optimizer state, bf16 copies, activations, logits and cache; ZeRO's shares, CUDA and its allocator
are not.
The table goes to stdout; the exit code is 1 when a case of tensors is further off than `--tolerance`.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf.sizing.memory import estimate
from rlhf.sizing.model_shape import ModelShape
from rlhf.sizing.setting import Setting, setting_of

ROOT = Path(__file__).resolve().parents[1]


def _shape(name: str, hidden: int, layers: int, vocabulary: int, *, kv: int | None = None) -> ModelShape:
    heads = hidden // 32
    return ModelShape(
        name=name, hidden=hidden, layers=layers, heads=heads, kv_heads=kv or heads, head_width=32,
        intermediate=hidden * 8 // 3 // 16 * 16, vocabulary=vocabulary, tied=True,
    )  # fmt: skip


SHAPES = {
    "2m": _shape("2m", 128, 6, 4096), "8m": _shape("8m", 288, 6, 8192), "60m": _shape("60m", 512, 16, 32000, kv=4),
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "2m": {"prompt_tokens": 128, "response_tokens": 128, "batch": 8, "micro_batch": 8},
    "8m": {"prompt_tokens": 128, "response_tokens": 128, "batch": 8, "micro_batch": 8},
    "60m": {"prompt_tokens": 64, "response_tokens": 64, "batch": 4, "micro_batch": 4},
}
PPO = {"rollouts": 8, "epochs": 1}


def cases() -> dict[str, Setting]:
    """Every method at two sizes, and what moves one part: passes, checkpointing, an adapter, bf16, a long cache."""
    found: dict[str, Setting] = {}
    for size, shape in SHAPES.items():
        for method in ("sft", "reward", "dpo", "ppo"):
            extra: dict[str, Any] = {"reward": {"sequences": 2.0, "proposer": False}, "ppo": PPO}.get(method, {})
            found[f"{method}-{size}"] = setting_of(method, shape, precision="float32", **ROWS[size], **extra)
    sft, dpo, ppo = found["sft-8m"], found["dpo-8m"], found["ppo-8m"]
    return found | {
        "sft-8m-passes": replace(sft, micro_batch=2),
        "sft-8m-checkpointing": replace(sft, activation_checkpointing=True),
        "sft-8m-bf16": replace(sft, precision="bfloat16"),
        "dpo-8m-lora": replace(dpo, lora_rank=8),
        "ppo-8m-passes": replace(ppo, micro_batch=2, batch=4),
        "ppo-8m-rollout": replace(ppo, rollouts=96, batch=96, micro_batch=2, prompt_tokens=8),
        "sft-60m-bf16": replace(found["sft-60m"], precision="bfloat16"),
    }


def measure(setting: Setting, *, count: str) -> float:
    """Peak of two steps in this process, bytes.

    Args:
        setting: of a case.
        count: "tensors" by torch's profiler, whose own records would spoil the count of the "process".
    """
    import torch

    from bench.workloads import build

    torch.set_num_threads(1)
    device = torch.device("cpu")
    build(replace(setting, shape=_shape("warm", 32, 1, 64), rollouts=2, batch=2, micro_batch=1), device).step()
    gc.collect()
    before = _resident()
    counting = count == "tensors"
    with torch.profiler.profile(profile_memory=True) if counting else contextlib.nullcontext() as profiler:
        work = build(setting, device)
        for _ in range(2):
            work.step()
    if profiler is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0 - before
    events = profiler.profiler.kineto_results.events()
    return float(max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")))


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure_alone(name: str, count: str) -> float:
    """The peak of a case, from a fresh process whose freed memory goes back to the system at once."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536",
                        "MALLOC_TRIM_THRESHOLD_": "65536"}  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "bench.memory", "--alone", name, "--count", count], cwd=ROOT, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{name}: exit code {ended.returncode}: {ended.stderr[-2000:]}")
    return float(ended.stdout.splitlines()[-1])


def compare(names: list[str]) -> list[dict[str, Any]]:
    """Reckoned and measured peaks of some cases."""
    rows, known = [], cases()
    for name in names:
        reckoned = estimate(known[name], reserve=False).peak
        row: dict[str, Any] = {"case": name, "parameters": known[name].shape.parameters, "moment": reckoned.name}
        row |= {"parts": reckoned.parts, "reckoned": reckoned.total}
        row |= {count: measure_alone(name, count) for count in ("tensors", "process")}
        row |= {"error": row["reckoned"] / row["tensors"] - 1, "of_process": row["reckoned"] / row["process"] - 1}
        rows.append(row)
        sys.stderr.write(f"{name}: {row['error']:+.1%}\n")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows in markdown, MB."""
    lines = [
        "| case | weights (M) | peak at | reckoned (MB) | tensors (MB) | error | process (MB) | error |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        mega = {name: f"{row[name] / 1e6:.1f}" for name in ("parameters", "reckoned", "tensors", "process")}
        lines.append(
            f"| {row['case']} | {mega['parameters']} | {row['moment']} | {mega['reckoned']} | {mega['tensors']} | "
            f"{row['error']:+.1%} | {mega['process']} | {row['of_process']:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(cases()), default=list(cases()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--tolerance", type=float, default=0.1, help="largest error of tensors; default %(default)s")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--count", choices=("tensors", "process"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        sys.stdout.write(f"{measure(cases()[args.alone], count=args.count)}\n")
        return 0
    rows = compare(args.cases)
    sys.stdout.write(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(any(abs(row["error"]) > args.tolerance for row in rows))


if __name__ == "__main__":
    sys.exit(main())
