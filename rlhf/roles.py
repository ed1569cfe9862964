"""The four models of PPO: who they are, where they come from, and the tokens they have to agree on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.batches import Batch
from rlhf.errors import BadInput
from rlhf.models import context_length, forbidden_ids, load_policy
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import load_tokenizer, pad_of, stop_ids

VALUE_HEAD_SCALE = 0.1
"""The value model starts as the reward model with its head shrunk: it knows what matters, and begins near zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Four models on one device, in fp32, without dropout, over one vocabulary."""

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    """What is trained."""
    reference: PreTrainedModel
    """The policy as it was at the start, frozen."""
    reward_model: RewardModel
    """Scores whole responses, frozen."""
    value_model: RewardModel
    """The reward model's trunk and head again, trained to predict what a state will earn."""
    forbidden: Tensor
    """True at tokens that are never sampled. [V] bool"""
    stops: tuple[int, ...]
    """Tokens that end a response."""
    pad_id: int

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Score of each response, in standard deviations of reference replies. Shape [B]."""
        raw = self.reward_model(batch.input_ids, batch.attention_mask, batch.response_mask)
        return self.reward_model.normalised(raw)

    def room(self, max_new_tokens: int) -> int:
        """Longest prompt, in tokens, that leaves room for a response."""
        return (context_length(self.policy) or 2**31) - max_new_tokens


def load_roles(sft: Path, reward: Path, *, device: torch.device) -> Roles:
    """Load policy and reference from one folder, reward model and value model from the other.

    Args:
        sft: folder of the policy to start from.
        reward: folder of the reward model.
        device: where all of them go.

    Raises:
        BadInput: a model cannot be loaded, or the two folders have different tokens: then the sampled ids would mean
            something else to the reward model, and the value model could not read the policy's states.
    """
    tokenizer = load_tokenizer(sft)
    if load_tokenizer(reward).get_vocab() != tokenizer.get_vocab():
        raise BadInput(f"{reward}: its tokenizer differs from that of {sft}; train the reward model from this policy")
    policy = load_policy(sft, device=device)
    value_model = RewardModel.load(reward, device=device)
    value_model.scale_head(VALUE_HEAD_SCALE)
    return Roles(
        tokenizer=tokenizer,
        policy=policy,
        reference=load_policy(sft, device=device).requires_grad_(False),
        reward_model=RewardModel.load(reward, device=device).requires_grad_(False),
        value_model=value_model,
        forbidden=forbidden_ids(tokenizer, policy),
        stops=stop_ids(tokenizer, policy),
        pad_id=pad_of(tokenizer),
    )
