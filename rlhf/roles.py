"""The models of a policy gradient run: who they are, where they come from, and the tokens they have to agree on.

Four at most. Each of the last three may be absent, and then nothing is loaded in its place:

    policy          trained
    reference       the policy as it was: a frozen model of its own, or the policy with its LoRA adapter off
    reward model    frozen; absent where rules alone give rewards
    value model     trained; a model of its own, a head on the policy's trunk, or absent where no method asks for values
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.adapters import AdapterOff, Lora, adapter_parameters, add_adapter
from rlhf.batches import Batch
from rlhf.engine import freeze
from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.errors import BadInput
from rlhf.models import context_length, count_parameters, forbidden_ids, load_policy
from rlhf.ranges import require_choice
from rlhf.reward_model import RewardModel
from rlhf.shared_value import PolicyWithValue
from rlhf.tokenizer import load_tokenizer, pad_of, stop_ids

VALUE_HEAD_SCALE = 0.1
"""The value model starts as the reward model with its head shrunk: it knows what matters, and begins near zero."""
VALUES = ("separate", "shared", "none")
REFERENCES = ("frozen", "adapter_off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Models on one device, in fp32, without dropout, over one vocabulary."""

    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    """What answers; with a LoRA adapter inside where one was asked for."""
    learner: nn.Module
    """What the policy's engine trains: the policy, or the policy with a value head (`shared_value.policy_of`)."""
    reference: PreTrainedModel | AdapterOff
    """The policy as it was at the start, frozen."""
    reward_model: RewardModel | None
    """Scores whole responses, frozen."""
    value_model: RewardModel | None
    """A model of its own, trained to predict what a state will earn; None when the head is shared or none is needed."""
    forbidden: Tensor
    """True at tokens that are never sampled. [V] bool"""
    stops: tuple[int, ...]
    """Tokens that end a response."""
    pad_id: int

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """Score of each response, in standard deviations of reference replies. Shape [B].

        Raises:
            BadInput: there is no reward model.
        """
        if self.reward_model is None:
            raise BadInput(
                "a score of the reward model is wanted, but none was loaded since no weight in ppo.rewards names it; "
                "add reward_model there or use the rules alone"
            )
        raw = self.reward_model(batch.input_ids, batch.attention_mask, batch.response_mask)
        return self.reward_model.normalised(raw)

    def room(self, max_new_tokens: int) -> int:
        """Longest prompt, in tokens, that leaves room for a response."""
        return (context_length(self.policy) or 2**31) - max_new_tokens

    def held(self) -> dict[str, int]:
        """Weights in memory by role, each counted once; what is absent has no entry."""
        adapter = adapter_parameters(self.policy)
        found = {"policy": count_parameters(self.policy) - adapter}
        if adapter:
            found["adapter"] = adapter
        if isinstance(self.learner, PolicyWithValue):
            found["value_head"] = count_parameters(self.learner.value_head)
        others: Mapping[str, object] = {
            "reference": self.reference, "reward_model": self.reward_model, "value_model": self.value_model,
        }  # fmt: skip
        return found | {name: count_parameters(m) for name, m in others.items() if isinstance(m, nn.Module)}


def load_roles(
    start: Path,
    reward: Path | None,
    *,
    device: torch.device,
    value: str = "separate",
    lora: Lora | None = None,
    value_lora: Lora | None = None,
    reference: str = "frozen",
    seed: int = 0,
    settings: EngineSettings = DEFAULTS,
) -> Roles:
    """Load policy and reference from one folder, reward model and value model from the other.

    Args:
        start: folder of the policy to start from.
        reward: folder of the reward model; None when rules alone give rewards.
        device: where all of them go.
        value: "separate" (the reward model again; without one the policy's trunk with a zero head), "shared" (a zero
            head on the policy's trunk) or "none".
        lora: adapter of the policy, which is then all that is trained of it; None to train all weights.
        value_lora: adapter of a value model of its own; its head is trained beside it.
        reference: "frozen" (a second model) or "adapter_off" (the policy itself; needs `lora`).
        seed: of the adapters' first weights.
        settings: of the engines to come, by which frozen models may be split over the ranks.

    Raises:
        BadInput: a model cannot be loaded, or the two folders have different tokens: then the sampled ids would mean
            something else to the reward model, and the value model could not read the policy's states; or the
            reference is to be what is under an adapter and there is none.
        ValueError: unknown `value` or `reference`.
    """
    require_choice(VALUES, value=value)
    require_choice(REFERENCES, reference=reference)
    if reference == "adapter_off" and lora is None:
        raise BadInput("ppo.reference is adapter_off, which needs an adapter; set ppo.lora_rank above 0, or frozen")
    tokenizer = load_tokenizer(start)
    if reward is not None and load_tokenizer(reward).get_vocab() != tokenizer.get_vocab():
        raise BadInput(f"{reward}: its tokenizer differs from that of {start}; train the reward model from this policy")
    policy = load_policy(start, device=device)
    if lora is not None:
        add_adapter(policy, lora, seed=seed)
    value_model = _value_model(start, reward, device) if value == "separate" else None
    if value_model is not None and value_lora is not None:
        value_model.adapt(value_lora, seed=seed)
    return Roles(
        tokenizer=tokenizer,
        policy=policy,
        learner=PolicyWithValue(policy) if value == "shared" else policy,
        reference=freeze(load_policy(start, device=device), settings) if reference == "frozen" else AdapterOff(policy),
        reward_model=None if reward is None else freeze(RewardModel.load(reward, device=device), settings),
        value_model=value_model,
        forbidden=forbidden_ids(tokenizer, policy),
        stops=stop_ids(tokenizer, policy),
        pad_id=pad_of(tokenizer),
    )


def _value_model(start: Path, reward: Path | None, device: torch.device) -> RewardModel:
    """The reward model with a small head, or, where there is none, the policy's trunk with a head of zeros."""
    if reward is not None:
        model = RewardModel.load(reward, device=device)
        model.scale_head(VALUE_HEAD_SCALE)
        return model
    with torch.random.fork_rng(devices=[]):
        model = RewardModel.from_policy(start, pooling="last", device=device)
    model.scale_head(0.0)
    return model
