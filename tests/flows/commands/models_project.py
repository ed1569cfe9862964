"""A project with two tiny policies and a judge, for the commands that talk to models."""

from pathlib import Path

import torch

from rlhf.models import build_policy, save_policy
from rlhf.outputs import write_jsonl
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import train_tokenizer

TEXTS = ["My lamp is broken. Order 201. Amara", "Good day Amara. I booked a full refund. Count on 5 days for that."]


def write_models_project(root: Path) -> Path:
    """Write the models of the stages sft, ppo and judge, and three held-out prompts."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "mlflow").mkdir()
    registry = Path(__file__).parents[3] / "mlflow/registry.yaml"
    (root / "mlflow/registry.yaml").write_text(registry.read_text())
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300)
    for seed, name in enumerate(("sft", "ppo")):
        torch.manual_seed(seed)
        model = build_policy(tokenizer, hidden=16, layers=2, heads=2, intermediate=32, context=96)
        save_policy(model, tokenizer, root / "data/models" / name)
    RewardModel.from_policy(root / "data/models/sft", pooling="mean").save(root / "data/models/judge", tokenizer)
    rows = [
        {"id": f"p{number}", "prompt": [{"role": "user", "content": f"Order {number}."}], "source": "x", "meta": {}}
        for number in (201, 202, 203)
    ]
    write_jsonl(root / "data/validated/prompts/test.jsonl", rows)
    return root
