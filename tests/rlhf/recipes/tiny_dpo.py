"""A stage `dpo` of a few pairs on a two-layer model, for the tests of its recipe."""

import csv
import dataclasses
from pathlib import Path

from rlhf import distributed
from rlhf.recipes import dpo
from tests.rlhf.recipes import tiny_models as tiny

CONFIG = dpo.Config(
    objective="dpo",
    beta=0.1,
    label_smoothing=0.0,
    length_normalised=False,
    reference_free=False,
    nll_coef=0.0,
    desirable_weight=1.0,
    undesirable_weight=1.0,
    lora_rank=0,
    lora_alpha=16.0,
    learning_rate=5e-3,
    batch_size=8,
    micro_batch=None,
    epochs=2.0,
    warmup_fraction=0.1,
    final_lr_fraction=0.0,
    max_grad_norm=1.0,
    max_tokens=40,
    max_pairs=None,
    max_new_tokens=6,
    sample_every=4,
    precision="float32",
)


def pair(number, chosen, rejected, label=1.0):
    """A pair record."""
    prompt = [{"role": "user", "content": "tree " + "bhs"[number % 3] * (number % 4)}]
    return {"id": str(number), "prompt": prompt, "chosen": chosen, "rejected": rejected, "label": label}


def write_split(folder, kind, rows, held_out=()):
    """The three files of one kind of record; returns their folder."""
    for split in ("train", "dev", "test"):
        tiny.write_rows(folder / f"{kind}/{split}.jsonl", list(rows if split == "train" else held_out))
    return folder / kind


def write_inputs(folder: Path) -> dict[str, Path]:
    """32 pairs in which one kind of letters is preferred, a tie and a pair that is too long; no judgement."""
    good, bad = ["ee", "see", "tree", "e"], ["b", "hr", "st", "bb"]
    rows = [pair(n, good[n % 4], bad[(n + n // 4) % 4]) for n in range(32)]
    tie, long = pair(40, "e", "b", 0.5), pair(41, "h" * 50, "b")
    tiny.write_rows(folder / "pairs/train.jsonl", [*rows, tie, long])
    tiny.write_rows(folder / "pairs/dev.jsonl", rows[:6])
    tiny.write_rows(folder / "pairs/test.jsonl", rows[6:9])
    return {
        "pairs": folder / "pairs",
        "judgements": write_split(folder, "judgements", ()),
        "prompts": tiny.write_prompts(folder / "prompts"),
        "sft": tiny.write_sft(folder / "sft"),
    }


def run(inputs, out, **changes):
    """Run the stage; returns the rows of its curve and where its outputs are."""
    outputs = {
        "model": out / "dpo", "metrics": out / "dpo.json", "curves": out / "dpo.csv", "samples": out / "samples.jsonl",
    }  # fmt: skip
    dpo.main(dataclasses.replace(CONFIG, **changes), seed=1, stage="dpo", **inputs, **outputs)
    distributed.barrier()  # the first rank writes, and all of them read
    with outputs["curves"].open() as stream:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    return rows, outputs
