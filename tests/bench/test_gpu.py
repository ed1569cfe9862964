import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs_at_a_tiny_size_on_a_cpu_and_samples_what_transformers_samples() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--size", "tiny"], cwd=ROOT, capture_output=True,
        text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = {row["what"]: row for row in map(json.loads, ended.stdout.splitlines())}
    assert set(rows) == {"sampling, ours", "sampling, transformers", "sft", "dpo", "ppo"}
    assert rows["sampling, ours"]["equal"] == 1.0
    assert set(rows["ppo"]["parts"]) == {"rollout", "score", "train"}
    assert all(0 < rows[method]["mfu"] < 1 for method in ("sft", "dpo", "ppo"))


def test_without_a_gpu_it_says_so() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench.gpu"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert ended.returncode == 2
    assert "nothing is measured" in ended.stderr
