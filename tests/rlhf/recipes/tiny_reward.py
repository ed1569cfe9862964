"""Inputs, settings and a run of the reward recipe on two-layer models, for its tests."""

import hashlib
import json

import torch

from rlhf import distributed
from rlhf.models import save_policy
from rlhf.recipes import reward
from rlhf.starting_point import Size, from_scratch

CONFIG = reward.Config(
    pooling="sum",
    scale=0.125,
    learning_rate=1e-2,
    batch_size=8,
    micro_batch=None,
    epochs=5,
    centering=0.01,
    margin_coef=0.0,
    ranking_loss="pairs",
    members=1,
    member_share=1.0,
    warmup_fraction=0.1,
    final_lr_fraction=0.0,
    max_grad_norm=1.0,
    weight_decay=0.0,
    max_tokens=40,
    max_pairs=None,
    precision="float32",
    swap_weight=0.5,
    swap_share=0.5,
    normalise_samples=24,
    max_new_tokens=8,
)


def ask(number):
    return [{"role": "user", "content": f"Order {number % 7}?"}]


def pair(number, **meta):
    sides = {"chosen": f"Thank you, I found order {number % 7}.", "rejected": "Not our problem."}
    # every eighth pair is a tie
    return {"prompt": ask(number), **sides, "label": 0.5 if number % 8 == 0 else 1.0, "meta": meta}


def write(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        rows = splits.get(split, [])
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def ordered(number, **changes):
    """A ranking of four answers with scores; two of them tie."""
    answers = [f"Thank you, I found order {number % 7}.", "I found it.", "No idea.", "Not our problem."]
    row = {"prompt": ask(number), "responses": answers[::-1], "ranks": [3, 2, 2, 1], "scores": [0.0, 1.0, 1.0, 3.0]}
    return {**row, **changes}


def write_inputs(folder):
    """Every input of the recipe, as the stages before leave them."""
    rows = [pair(number) for number in range(48)]
    torch.manual_seed(0)
    records = [{"prompt": row["prompt"], "response": row[side]} for row in rows for side in ("chosen", "rejected")]
    tokenizer, policy = from_scratch(records, Size(300, hidden=16, layers=2, heads=2, intermediate=32, context=48))
    save_policy(policy, tokenizer, folder / "sft")
    return {
        "pairs": write(folder / "pairs", train=rows, dev=rows[:9], test=rows[9:20]),
        "rankings": folder / "no_rankings",
        "probes": write(folder / "probes", test=[pair(number, probe="rude") for number in range(1, 5)]),
        "prompts": write(folder / "prompts", train=[{"prompt": ask(number)} for number in range(7)]),
        "sft": folder / "sft",
    }


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def run(config, folder, inputs, stage="reward", seed=1):
    paths = {"model": folder / "model", "metrics": folder / "reward.json", "curves": folder / "reward.csv"}
    reward.main(config, seed=seed, stage=stage, **inputs, **paths)
    distributed.barrier()  # the first rank writes, and all of them read
    return json.loads(paths["metrics"].read_text())


def fingerprint(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
