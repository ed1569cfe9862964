"""What is to be sized: a method, a model, machines, and how the engine holds things."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rlhf.ranges import require_above_zero, require_at_least, require_choice
from rlhf.sizing.model_shape import ModelShape

METHODS = ("sft", "reward", "dpo", "kto", "ppo", "grpo", "rloo", "reinforce")
"""What can be asked for; each is a stage with some of its settings fixed (`OF_METHOD`)."""
STAGES = {"sft": "sft", "reward": "reward", "judge": "reward", "dpo": "dpo", "ipo": "dpo", "kto": "dpo", "ppo": "ppo",
          "grpo": "ppo", "rloo": "ppo", "reinforce": "ppo"}  # fmt: skip
"""From a method to the section of params.yaml that it is read from; `judge` has a section of its own."""
OFFLOADS = ("none", "optimizer", "parameters")
VALUES = ("separate", "shared", "none")
REFERENCES = ("frozen", "adapter_off", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Holds:
    """How an engine holds weights. The defaults are what rlhf/engine.py, deepspeed_engine.py and roles.py do now."""

    weights: str = "float32"
    """Format of all weights in memory; "bfloat16" would keep fp32 masters with the optimizer instead."""
    frozen_split: bool = True
    """Whether ZeRO-3 splits frozen models over the ranks too, or each rank holds them whole."""
    whole_rollout: bool = True
    """Whether under ZeRO-3 every rank gathers the whole policy to sample, or a block at a time for every token."""
    whole_load: bool = True
    """Whether every rank loads whole models onto its GPU before ZeRO-3 splits them."""
    casts_kept: bool = True
    """Whether autocast keeps the bf16 copies of all weights until the forward pass ends."""


ENGINE = Holds()
"""This project's engine."""
IDEAL = Holds(weights="bfloat16", frozen_split=True, whole_rollout=False, whole_load=False, casts_kept=False)
"""An engine that spares memory wherever DeepSpeed knows how."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One way to train one model."""

    method: str
    """One of `METHODS`; "judge" and "ipo" are read as reward and dpo."""
    shape: ModelShape
    gpus: int = 1
    gpus_per_node: int = 8
    memory: float = 80e9
    """Of one GPU, bytes."""
    zero_stage: int = 2
    """0 to 3; read with several GPUs only."""
    offload: str = "none"
    """One of `OFFLOADS`; read with several GPUs only."""
    activation_checkpointing: bool = False
    optimizer: str = "adamw"
    """"adamw" or "adamw_8bit"."""
    lora_rank: int = 0
    """Of the policy's adapter (of the model's, in other methods than policy gradients); 0 trains all weights."""
    value_lora_rank: int = 0
    """Of the adapter of a separate value model."""
    precision: str = "bfloat16"
    """Of the forward passes: "float32" or "bfloat16"."""
    prompt_tokens: int = 512
    response_tokens: int = 512
    """Longest, tokens; every row is reckoned as long as that."""
    batch: int = 64
    """Demonstrations, pairs or rollouts of an optimizer step, over all GPUs."""
    micro_batch: int = 1
    """Of them, in a forward pass of one GPU."""
    rollouts: int = 64
    """Responses of an update, over all GPUs; policy gradients only."""
    epochs: int = 1
    """Passes over an update's rollouts."""
    sequences: float = 1.0
    """Rows of one element of a batch: 2 for a pair, more with swapped answers."""
    value_model: str = "none"
    """One of `VALUES`."""
    reference: str = "none"
    """One of `REFERENCES`; offline methods ask it once before the first step and hold none."""
    reward_models: int = 0
    """Frozen ones that score."""
    proposer: bool = False
    """Whether a frozen copy of the starting policy stays beside the model, as in the reward recipe."""
    holds: Holds = field(default_factory=Holds)

    def __post_init__(self) -> None:
        """Check ranges and choices.

        Raises:
            ValueError: a field is out of range or does not go with another.
        """
        require_choice(tuple(STAGES), method=self.method)
        require_choice(OFFLOADS, offload=self.offload)
        require_choice(VALUES, value_model=self.value_model)
        require_choice(REFERENCES, reference=self.reference)
        require_choice(("float32", "bfloat16"), precision=self.precision)
        if self.zero_stage not in range(4):
            raise ValueError(f"zero_stage is {self.zero_stage}, wanted 0, 1, 2 or 3")
        require_above_zero(memory=self.memory)
        require_at_least(
            1, gpus=self.gpus, gpus_per_node=self.gpus_per_node, batch=self.batch, micro_batch=self.micro_batch,
            rollouts=self.rollouts, epochs=self.epochs, response_tokens=self.response_tokens,
        )  # fmt: skip
        require_at_least(0, lora_rank=self.lora_rank, value_lora_rank=self.value_lora_rank)
        require_at_least(0, prompt_tokens=self.prompt_tokens)
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(f"offload is parameters and zero_stage {self.zero_stage}, wanted zero_stage 3")
        if self.reference == "adapter_off" and not self.lora_rank:
            raise ValueError("reference is adapter_off, wanted frozen since lora_rank is 0")

    @property
    def samples(self) -> bool:
        """Whether the method writes answers of its own to learn from."""
        return STAGES[self.method] == "ppo"

    @property
    def zero(self) -> int:
        """The ZeRO stage in effect: none on one GPU."""
        return self.zero_stage if self.gpus > 1 else 0

    @property
    def moved(self) -> str:
        """What is offloaded in effect: nothing on one GPU."""
        return self.offload if self.gpus > 1 else "none"

    @property
    def tokens(self) -> int:
        """Longest row."""
        return self.prompt_tokens + self.response_tokens

    @property
    def share(self) -> int:
        """Elements of an optimizer step on one GPU."""
        return max(1, -(-self.batch // self.gpus))

    @property
    def rows(self) -> float:
        """Rows of a forward pass of one GPU."""
        return self.sequences * min(self.micro_batch, self.share)

    @property
    def passes(self) -> int:
        """Forward passes of one GPU in an optimizer step."""
        return -(-self.share // min(self.micro_batch, self.share))

    @property
    def casts(self) -> bool:
        """Whether fp32 weights are copied to bf16 for the forward pass."""
        return self.precision == "bfloat16" and self.holds.weights == "float32"


@dataclass(frozen=True, slots=True)
class Role:
    """A model in memory."""

    name: str
    total: int
    """Weights."""
    trained: int
    """Of them trained, or of an adapter beside them; 0 for a frozen model."""
    head: int
    """Weights of the output matrix; 0 where one number is put out."""

    @property
    def adapted(self) -> bool:
        """Whether only an adapter is trained."""
        return 0 < self.trained < self.total


def roles(setting: Setting) -> list[Role]:
    """The models that a method holds in this project, the one that is trained first."""
    shape, rank = setting.shape, setting.lora_rank
    if STAGES[setting.method] == "reward":
        scorer = Role("reward model", shape.trunk, shape.adapter(rank) if rank else shape.trunk, 0)
        proposer = [Role("policy", shape.parameters, 0, shape.head)] if setting.proposer else []
        return [scorer, *proposer]
    trained = shape.adapter(rank) if rank else shape.parameters
    found = [Role("policy", shape.parameters, trained, shape.head)]
    if setting.samples and setting.value_model == "separate":
        thin = setting.value_lora_rank
        found.append(Role("value model", shape.trunk, shape.adapter(thin) if thin else shape.trunk, 0))
    if setting.samples and setting.reference == "frozen":
        found.append(Role("reference", shape.parameters, 0, shape.head))
    found += [Role("reward model", shape.trunk, 0, 0)] * (setting.reward_models if setting.samples else 0)
    return found


OF_METHOD: dict[str, dict[str, Any]] = {
    "sft": {}, "dpo": {"sequences": 2.0}, "ipo": {"sequences": 2.0}, "kto": {},
    "reward": {"sequences": 3.0, "proposer": True}, "judge": {"sequences": 2.5, "proposer": True},
    "ppo": {"value_model": "separate", "reference": "frozen", "reward_models": 1, "epochs": 4},
    "grpo": {"reference": "frozen", "reward_models": 1}, "rloo": {"reference": "frozen", "reward_models": 1},
    "reinforce": {"reference": "frozen", "reward_models": 1},
}  # fmt: skip
"""What is known of a method without params.yaml."""


def setting_of(method: str, shape: ModelShape, **changes: object) -> Setting:
    """A setting of a method, its roles as the method has them.

    Args:
        method: a key of `OF_METHOD`.
        shape: the model.
        changes: fields of `Setting`.

    Raises:
        ValueError: a field is out of range.
    """
    known: dict[str, Any] = {**OF_METHOD[method], **changes}
    if known.get("lora_rank") and known.get("reference") == "frozen" and "reference" not in changes:
        known["reference"] = "adapter_off"  # the same numbers, and a model less
    return dataclasses.replace(Setting(method=method, shape=shape), **known)
