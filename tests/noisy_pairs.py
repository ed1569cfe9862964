"""Pairs of the embedded task in which some labels are the wrong way round, and a policy to start models from."""

from pathlib import Path
from typing import Any

import torch
import yaml

from rlhf.config import load_section
from rlhf.models import build_policy, save_policy
from rlhf.outputs import write_jsonl
from rlhf.reward_config import Config
from rlhf.tokenizer import train_tokenizer
from tests.talking_models import prompt_record

GOOD, BAD = "Sorry {name}. I booked a full refund.", "What do you want? No."


def pair_record(number: int, *, wrong: bool) -> dict[str, Any]:
    """A pair in which the right answer is plain, labelled rightly or wrongly."""
    ticket = prompt_record(number)
    answers = GOOD.format(name=ticket["meta"]["name"]), BAD
    better, worse = reversed(answers) if wrong else answers
    return {
        **ticket, "id": f"pair{number}", "chosen": better, "rejected": worse, "label": 1.0,
        "annotator": "hasty" if wrong else "careful", "score_chosen": None, "score_rejected": None,
        "source": "support_desk/pairs.jsonl",
    }  # fmt: skip


def tiny_settings(params: Path, **changes: Any) -> Config:
    """The project's own settings of the reward model, made small."""
    section = yaml.safe_load(params.read_text())["reward"]
    small = {"learning_rate": 0.01, "batch_size": 8, "epochs": 3.0, "swap_weight": 0.0, "max_tokens": 64, **changes}
    return load_section({"reward": {**section, **small}}, "reward", Config)


def write_noisy_pairs(root: Path, *, count: int = 48, every: int = 8) -> list[dict[str, Any]]:
    """Write data/models/sft and pairs of all splits: each `every`-th training label is wrong, and one is a tie."""
    records = [pair_record(number, wrong=number % every == 3) for number in range(count)]
    tie = {**pair_record(count, wrong=False), "label": 0.5}
    texts = [GOOD.format(name="Olga"), BAD, *(record["prompt"][0]["content"] for record in records)]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    torch.manual_seed(0)
    model = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=32, context=96)
    save_policy(model, tokenizer, root / "data/models/sft")
    held_out = [pair_record(900 + number, wrong=False) for number in range(3)]
    for name, rows in (("train", [*records, tie]), ("dev", held_out[:1]), ("test", held_out[1:2])):
        write_jsonl(root / f"data/validated/pairs/{name}.jsonl", rows)
    for name, rows in (("train", held_out[2:]), ("dev", held_out[:1]), ("test", held_out[1:2])):
        write_jsonl(root / f"data/validated/judge_pairs/{name}.jsonl", rows)
    return records
