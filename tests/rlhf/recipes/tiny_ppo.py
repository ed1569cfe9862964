"""A run of the policy-gradient recipe on two-layer models, for several test files."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

from rlhf import distributed
from rlhf.config import load_section, read_params
from rlhf.ppo_config import Config
from rlhf.recipes import ppo
from tests.rlhf.recipes import tiny_models as tiny

ROOT = Path(__file__).parents[3]
TINY: dict[str, Any] = {
    "updates": 4, "rollouts": 8, "epochs": 2, "minibatch": 4, "micro_batch": None, "max_new_tokens": 6,
    "max_prompt_tokens": 20, "learning_rate": 1e-3, "value_learning_rate": 1e-3, "warmup_updates": 1, "kl_coef": 0.05,
    "kl_target": 1.0, "kl_horizon": 100.0, "missing_eos_penalty": 0.0, "sample_every": 2, "precision": "float32",
}  # fmt: skip
"""What differs from the embedded task's settings."""

CONFIG = dataclasses.replace(load_section(read_params(ROOT / "profiles/default.yaml"), "ppo", Config), **TINY)


def write_inputs(folder: Path) -> dict[str, Path]:
    """Every folder that the recipe reads."""
    sft = tiny.write_sft(folder / "sft")
    asked = [[{"role": "user", "content": "tree " + "bhs"[n % 3]}] for n in range(6)]
    rows = [{"id": str(n), "prompt": asked[n], "response": "see " * (n % 3 + 1)} for n in range(6)]
    tiny.write_rows(folder / "demonstrations" / "train.jsonl", rows)
    (folder / "base").mkdir()
    return {
        "prompts": tiny.write_prompts(folder / "prompts"), "sft": sft,
        "reward": tiny.write_reward(folder / "reward", sft), "demonstrations": folder / "demonstrations",
        "base": folder / "base",
    }  # fmt: skip


def constant(messages: Any, text: str, meta: Any) -> float:
    """A reward that is the same for every answer."""
    return 0.5


def run(inputs: dict[str, Path], out: Path, config: Config = CONFIG, **changes: Any):
    """Run the recipe; the rows of its curve and the paths of its outputs."""
    outputs = {
        "model": out / "ppo", "metrics": out / "ppo.json", "curves": out / "ppo.csv", "samples": out / "samples.jsonl",
    }  # fmt: skip
    ppo.main(dataclasses.replace(config, **changes), seed=1, stage="ppo", **inputs, **outputs)
    distributed.barrier()  # the first rank writes, and all of them read
    with outputs["curves"].open() as stream:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    return rows, outputs
