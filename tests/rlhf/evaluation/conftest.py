"""Two-layer models with random weights and a tokenizer of a few hundred tokens, made once for all evaluation tests."""

from pathlib import Path

import pytest
import torch

from rlhf.models import build_policy, save_policy
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import train_tokenizer

TEXTS = ["My lamp is broken. Order 201. Amara", "Good day Amara. I booked a full refund. Count on 5 days for that."]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Policies `sft` and `other`, reward models `reward` and `judge`, all of one tokenizer."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300)
    for seed, name in enumerate(("sft", "other")):
        torch.manual_seed(seed)
        model = build_policy(tokenizer, hidden=16, layers=2, heads=2, intermediate=32, context=96)
        save_policy(model, tokenizer, root / name)
    for seed, name in enumerate(("reward", "judge")):
        torch.manual_seed(seed)
        RewardModel.from_policy(root / "sft", pooling="mean").save(root / name, tokenizer)
    return {path.name: path for path in root.iterdir()}
