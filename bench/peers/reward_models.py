"""The same reward model as we and as the peer want it: one scalar head without bias, read at the last token."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rlhf.models import load_pretrained
from rlhf.reward_model import RewardModel


def make_reward_model(folder: Path) -> RewardModel:
    """Ours, on the trunk of a policy; equal for equal folders."""
    torch.manual_seed(1)
    model = RewardModel.from_policy(folder, pooling="last")
    head = nn.Linear(model.head.in_features, 1, bias=False)
    head.weight.data.copy_(model.head.weight)
    model.trunk.score = head
    return model


def make_classifier(folder: Path) -> PreTrainedModel:
    """The peer's."""
    model = load_pretrained(
        AutoModelForSequenceClassification, folder, device="cpu", revision=None, may_miss=("score.",), num_labels=1
    )
    model.score.weight.data.copy_(make_reward_model(folder).head.weight)
    return model
