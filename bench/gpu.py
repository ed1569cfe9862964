"""Speed and memory on one device: sampling, a PPO update by parts, DPO and SFT, and PPO on the embedded task.

    python -m bench.gpu                                   on a GPU, models of about 0.1B and 1B weights, random
    python -m bench.gpu --device cpu --size tiny          the same code on a CPU, for its test

Needs rlhf, torch and transformers alone. Every line of JSON is a row: tokens per second of ours and of transformers'
own generate, and as a share of the roofline (the bytes that a step has to read, at the bandwidth that a copy reaches);
MFU, which is the operations of the model over time and the peak of the data sheet (on a device without one here, over
the rate of a large product); and peak memory beside what `ratchet size` says. The exit code is 1 when greedy samples in
fp32 differ from transformers' own.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.memory import SHAPES
from bench.workloads import PAD, build, policy_of_shape, random_prompts
from rlhf.config import read_params
from rlhf.device import autocast, choose_device
from rlhf.generation import generate
from rlhf.sizing.activations import cache
from rlhf.sizing.memory import estimate
from rlhf.sizing.model_shape import ModelShape, widened
from rlhf.sizing.published import PUBLISHED
from rlhf.sizing.setting import Setting, setting_of
from rlhf.sizing.timing import GPUS, training_operations

ROOT = Path(__file__).resolve().parents[1]
SIZES: dict[str, tuple[ModelShape, dict[str, int]]] = {
    "tiny": (replace(SHAPES["2m"], layers=2, vocabulary=512), {"prompt_tokens": 16, "response_tokens": 16, "batch": 4}),
    "0.1B": (widened(PUBLISHED["Llama-3.2-1B"], 1.5e8, name="0.1B"),
             {"prompt_tokens": 256, "response_tokens": 256, "batch": 64}),
    "1B": (PUBLISHED["Llama-3.2-1B"], {"prompt_tokens": 512, "response_tokens": 512, "batch": 16}),
}  # fmt: skip
REPEATS = 3


class Clock:
    """Seconds on a device, and its peak memory."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts, self.last = device, dict[str, float](), 0.0

    def now(self) -> float:
        """Seconds, after all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def mark(self, name: str) -> None:
        """Add the time since the last mark to a part."""
        now = self.now()
        self.parts[name] = self.parts.get(name, 0.0) + now - self.last
        self.last = now

    def median(self, function: Callable[[], object]) -> float:
        """Median seconds of a few calls after one that warms up."""
        function()
        found = []
        for _ in range(REPEATS):
            start = self.now()
            function()
            found.append(self.now() - start)
        return sorted(found)[REPEATS // 2]


def bandwidth(clock: Clock) -> float:
    """Bytes per second of a copy, reading and writing both counted."""
    count = 2**30 if clock.device.type == "cuda" else 2**24
    source = torch.ones(count // 4, device=clock.device)
    target = torch.empty_like(source)
    return 2 * count / clock.median(lambda: target.copy_(source))


def peak_operations(clock: Clock, precision: str) -> tuple[float, str]:
    """Operations per second to compare with, and where the number is from."""
    if clock.device.type == "cuda":
        name = torch.cuda.get_device_name(clock.device)
        for known, gpu in GPUS.items():
            if known in name.replace(" ", ""):
                return (gpu.half if precision == "bfloat16" else gpu.single), f"data sheet of {known}"
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    side = 8192 if clock.device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=clock.device, dtype=kind) for _ in range(2))
    return 2 * side**3 / clock.median(lambda: left @ right), f"a product of {side} x {side}"


def sampling(setting: Setting, clock: Clock) -> list[dict[str, Any]]:
    """Tokens per second of ours and of transformers' generate on the same prompts, greedy and without a stop token."""
    device, rows, count = clock.device, setting.batch, setting.response_tokens
    policy = policy_of_shape(setting.shape, device, context=setting.tokens)
    prompts = random_prompts(setting, rows, torch.Generator().manual_seed(1))
    ids = torch.tensor(prompts, device=device)
    forbidden = torch.zeros(setting.shape.vocabulary, dtype=torch.bool, device=device)

    def ours() -> list[list[int]]:
        with autocast(device, setting.precision):
            return generate(
                policy, prompts, max_new_tokens=count, temperature=1.0, stop_ids=[], forbidden=forbidden, pad_id=PAD,
                generator=None, greedy=True,
            ).responses  # fmt: skip

    def theirs() -> list[list[int]]:
        with torch.no_grad(), autocast(device, setting.precision):
            found = policy.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                eos_token_id=None, pad_token_id=PAD,
            )  # fmt: skip
        return list(found[:, ids.shape[1] :].tolist())

    equal = sum(a == b for x, y in zip(ours(), theirs(), strict=True) for a, b in zip(x, y, strict=True))
    speed = bandwidth(clock)
    each = 2 if setting.precision == "bfloat16" else 4
    weights = each * (setting.shape.matrices + setting.shape.head)
    filled = 0.5 * (1 + setting.prompt_tokens / setting.tokens) * cache(setting.shape, setting, rows)
    limit = rows / ((weights + filled) / speed)
    found = []
    for name, function in (("sampling, ours", ours), ("sampling, transformers", theirs)):
        rate = rows * count / clock.median(function)
        found.append({"what": name, "tokens_per_s": rate, "of_roofline": rate / limit, "equal": equal / rows / count})
    return found


def training(setting: Setting, clock: Clock, peak: float) -> dict[str, Any]:
    """Seconds, MFU and memory of a step; of PPO by the parts of an update."""
    cuda = clock.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(clock.device)
    work = build(setting, clock.device)
    work.step()
    work.marks = clock.mark
    clock.parts, clock.last = {}, clock.now()
    start = clock.last
    for _ in range(REPEATS):
        work.step()
    seconds = (clock.now() - start) / REPEATS
    parts = {name: value / REPEATS for name, value in clock.parts.items()}
    operations = training_operations(replace(setting, activation_checkpointing=False))
    reckoned = estimate(setting, reserve=False).peak.total
    measured = float(torch.cuda.max_memory_allocated(clock.device)) if cuda else None
    return {
        "what": setting.method, "seconds": seconds, "parts": parts, "reckoned": reckoned, "measured": measured,
        "mfu": operations / parts.get("train", seconds) / peak,
        "memory_error": reckoned / measured - 1 if measured else None,
    }  # fmt: skip


def embedded_task(folder: Path, out: Path) -> dict[str, Any] | None:
    """PPO as params.yaml has it on this device, beside the project's own result; None without its data.

    Args:
        folder: a project that has run.
        out: where the stage writes.
    """
    import yaml

    if not (folder / "data/models/reward/config.json").is_file():
        return None
    stages = yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    params = read_params(folder / "params.yaml")
    text = str(stages["ppo"]["cmd"]).replace("${ppo.start_from}", params["ppo"]["start_from"])
    words = [sys.executable, *shlex.split(text)[2:]]
    for option in ("--model", "--metrics", "--curves", "--samples"):
        place = words.index(option) + 1
        words[place] = str(out / Path(words[place]).name)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    ours = json.loads((out / "ppo.json").read_text(encoding="utf-8"))
    kept = json.loads((folder / "data/metrics/ppo.json").read_text(encoding="utf-8"))
    names = ("score", "kl", "reward", "length_tokens")
    return {"what": "PPO on the embedded task", "seconds": time.perf_counter() - start,
            "here": {name: ours["final"][name] for name in names},
            "kept": {name: kept["final"][name] for name in names}}  # fmt: skip


def measure(size: str, device: torch.device, precision: str) -> list[dict[str, Any]]:
    """All rows of one size."""
    shape, lengths = SIZES[size]
    clock = Clock(device)
    base: dict[str, Any] = {"precision": precision, **lengths, "micro_batch": max(1, lengths["batch"] // 4)}
    peak, source = peak_operations(clock, precision)
    rows = sampling(setting_of("sft", shape, **base), clock)
    for method in ("sft", "dpo", "ppo"):
        extra = {"rollouts": lengths["batch"], "epochs": 1} if method == "ppo" else {}
        rows.append(training(setting_of(method, shape, **base, **extra), clock, peak) | {"peak_from": source})
    return [{"size": size, "parameters": shape.parameters, "precision": precision, **row} for row in rows]


def main() -> int:
    """Measure and print one JSON line per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["0.1B", "1B"])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default bfloat16 on a GPU, else float32")
    parser.add_argument("--project", type=Path, metavar="FOLDER", help="also PPO on the embedded task of this project")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"), help="for its outputs; default %(default)s")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        why = "there is no GPU here, so nothing is measured; --device cpu --size tiny tries the code"
        sys.stderr.write(f"bench.gpu: {why}\n")
        return 2
    device = choose_device() if args.device == "cuda" else torch.device("cpu")
    precision = args.precision or ("bfloat16" if args.device == "cuda" else "float32")
    rows = [row for size in args.size for row in measure(size, device, precision)]
    if args.project and (row := embedded_task(args.project.resolve(), args.out.resolve())):
        rows.append(row)
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    return int(precision == "float32" and any(row.get("equal", 1.0) < 1.0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
