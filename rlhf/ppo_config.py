"""Settings of the policy-gradient recipe: what may be composed, in which ranges, and what does not go together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf.device import PRECISIONS
from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction
from rlhf.rewards.sources import check_names

GROUP_ADVANTAGES = ("leave_one_out", "group_relative", "group_centred")
ADVANTAGES = ("gae", "reward_to_go", "full_return", *GROUP_ADVANTAGES)
BASELINES = ("none", "mean", "value")
CLIPPED = ("clipped", "clipped_penalised")
PENALISED = ("penalised", "clipped_penalised")
OBJECTIVES = ("clipped", "clipped_penalised", "penalised", "importance_sampled", "reinforce", "trust_region")
AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum")
KL_ESTIMATORS = ("k1", "k2", "k3")

REFUSED = dict.fromkeys(
    ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "min_length", "min_new_tokens"),
    "the samples would come from another distribution than the one whose log-probabilities are trained, so ratio and "
    "KL would be wrong; remove it (ppo.temperature is applied to both)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Parameters of the stage `ppo`. Sampler modifiers do not exist: they break the ratio."""

    REFUSED: ClassVar[Mapping[str, str]] = REFUSED
    """Keys that `rlhf.config` refuses with a reason instead of as unknown."""

    start_from: str
    """"sft" or "dpo": the policy to start from and to stay near; the stage's `--sft` path follows it."""
    updates: int
    """Rounds of sampling and learning, at least 1."""
    rollouts: int
    """Responses of an update, over all ranks."""
    group_size: int
    """Responses to each prompt, divides `rollouts`; at least 2 for advantages within a group."""
    epochs: int
    """Passes over the rollouts of an update, at least 1."""
    minibatch: int | None
    """Rollouts in an optimizer step, over all ranks; divides `rollouts`; null means all of them."""
    micro_batch: int | None
    """Rollouts in a forward pass on one rank; null means a rank's whole minibatch. Does not change results."""
    temperature: float
    """Divides the logits in sampling, training and reference alike, above 0."""
    max_new_tokens: int
    """Longest response, tokens."""
    max_prompt_tokens: int
    """Longer prompts are left out and counted, tokens."""
    learning_rate: float
    """Peak rate of the policy's AdamW, above 0."""
    value_learning_rate: float
    """Peak rate of the value model's AdamW, above 0."""
    warmup_updates: int
    """Updates in which both rates rise, less than `updates`."""
    final_lr_fraction: float
    """Share of the peak rates that is left at the end of the straight descent, in [0, 1]."""
    value_warmup_updates: int
    """First updates in which only the value model learns, less than `updates`; none where no values are needed."""
    advantage: str
    """One of `ADVANTAGES`."""
    baseline: str
    """One of `BASELINES`; subtracted by reward_to_go and full_return only."""
    whiten: bool
    """Whether advantages get mean 0 and variance 1 over the global batch."""
    objective: str
    """One of `OBJECTIVES`."""
    clip_range: float
    """How far a token's probability ratio may fall below 1 with effect, in (0, 1)."""
    clip_range_high: float | None
    """How far it may rise above 1 with effect, above 0; null for the same as `clip_range`."""
    dual_clip: float | None
    """Bound on the ratio of tokens with negative advantage, above 1 + clip_range_high; null for none."""
    step_kl_coef: float
    """Price of KL(policy that sampled || policy), advantage units per nat, at least 0; penalised objectives only."""
    step_kl_target: float | None
    """That KL after an update, nats per token: above 1.5 times it the price doubles, below 1 / 1.5 it halves."""
    trust_region_kl: float
    """objective trust_region: bound on the KL of an update, nats per token, above 0."""
    trust_region_damping: float
    """objective trust_region: added to the Fisher matrix's diagonal, at least 0."""
    aggregation: str
    """One of `AGGREGATIONS`; sequence_sum divides by `max_new_tokens`."""
    value_model: str
    """"separate", started from the reward model, or "shared": a head on the policy's trunk."""
    value_coef: float
    """Weight of the value loss beside the policy loss, above 0; shared only."""
    value_clip: float | None
    """How far a value may move from its old one with effect, reward units, above 0; null for no clipping."""
    gamma: float
    """Discount per token, in [0, 1]; below 1 it punishes length."""
    gae_lambda: float
    """0 trusts the value model alone, 1 the sampled return alone; in [0, 1]."""
    kl_coef: float
    """Price of divergence from the reference, reward standard deviations per nat, at least 0; adaptive starts here."""
    kl_place: str
    """"reward": charged to each sampled token; "loss": added to the policy's loss."""
    kl_estimator: str
    """One of `KL_ESTIMATORS`: k1 in the reward; k2 in the loss (k3 there is GRPO's)."""
    kl_controller: str
    """"fixed", or "adaptive" to steer kl_coef towards `kl_target`."""
    kl_target: float
    """Wanted divergence of the adaptive controller, nats per response, above 0."""
    kl_horizon: float
    """Responses over which the adaptive controller takes its full step, above 0."""
    entropy_coef: float
    """Reward for randomness, advantage units per nat, at least 0."""
    rewards: dict[str, float]
    """Weights of the signals by name; their weighted sum is the score."""
    reward_rules: dict[str, Any]
    """Settings of rule signals, see `rlhf.rewards.rules`."""
    reward_combination: str
    """"mean", "worst" or "uncertainty": how the members of a reward ensemble become one score."""
    uncertainty_coef: float
    """uncertainty: mean minus this times the variance, at least 0."""
    missing_eos_penalty: float
    """A response that was cut scores this many reward standard deviations below 0, whatever it says; at least 0."""
    reward_clip: float | None
    """Scores are clamped to +- this many standard deviations, above 0; null for never."""
    dynamic_sampling: int
    """Extra rounds that replace groups whose scores are all equal, at least 0."""
    overlong_buffer: int
    """Last tokens before `max_new_tokens` in which a price on length rises; 0 for none."""
    overlong_penalty: float
    """That price at full length, reward units, at least 0."""
    mask_cut: bool
    """Whether responses that were cut take no part in the policy's loss."""
    reference: str
    """"frozen": a second copy of the start; "adapter_off": the policy without its adapter, needs `lora_rank`."""
    lora_rank: int
    """Rank of the policy's low-rank adapter, which alone is then trained; 0 for all weights."""
    lora_alpha: float
    """The adapter is scaled by lora_alpha / lora_rank; above 0."""
    value_lora_rank: int = 0
    """Rank of the same kind of adapter of a separate value model, whose head is trained too; 0 for all weights."""
    ptx_coef: float
    """Weight of the language-model loss on demonstrations, advantage units per nat; 0 for none."""
    ptx_batch: int
    """Demonstrations in an optimizer step, over all ranks."""
    curriculum: str
    """"none", or "easy_first": prompts in the order of their difficulty for the starting policy."""
    target_kl: float | None
    """An update ends after an epoch that moved the policy by more than this, nats per token, above 0; null: never."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 means never."""
    sample_every: int
    """Updates between samples for people to read, at least 1."""
    precision: str
    """"auto" (bfloat16 on a GPU, float32 on a CPU), "float32" or "bfloat16"."""
    overlap: bool = False
    """Whether scoring begins beside sampling and beside the reference; changes the time and no number."""
    engine: EngineSettings = DEFAULTS
    """How it is trained on the devices there are: ZeRO, offload, checkpointing and the like."""

    def __post_init__(self) -> None:
        """Check ranges, choices, and what goes together.

        Raises:
            ValueError: a field is out of range or does not go with another.
            BadInput: a signal or a rule in `rewards` and `reward_rules` that does not exist or is set up wrongly.
        """
        _check_ranges(self)
        _check_choices(self)
        for wrong, sentence in _conflicts(self):
            if wrong:
                raise ValueError(sentence)
        check_names(self.rewards, self.reward_rules)

    @property
    def needs_values(self) -> bool:
        """Whether anything asks for a value model; without it none is loaded."""
        return self.advantage == "gae" or self.baseline == "value"

    @property
    def step_rollouts(self) -> int:
        """Rollouts in an optimizer step, over all ranks."""
        return self.rollouts if self.minibatch is None else self.minibatch

    @property
    def clip_high(self) -> float:
        """How far a ratio may rise above 1."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high


def _check_ranges(config: Config) -> None:
    counts = ("updates", "rollouts", "group_size", "epochs", "minibatch", "micro_batch", "max_new_tokens",
              "max_prompt_tokens", "ptx_batch", "sample_every")  # fmt: skip
    require_at_least(1, **{name: getattr(config, name) for name in counts})
    from_zero = (
        "warmup_updates", "value_warmup_updates", "step_kl_coef", "trust_region_damping", "kl_coef", "entropy_coef",
        "uncertainty_coef", "missing_eos_penalty", "dynamic_sampling", "overlong_buffer", "overlong_penalty",
        "lora_rank", "value_lora_rank", "ptx_coef", "max_grad_norm",
    )  # fmt: skip
    require_at_least(0, **{name: getattr(config, name) for name in from_zero})
    positive = (
        "temperature", "learning_rate", "value_learning_rate", "clip_range", "trust_region_kl", "value_coef",
        "kl_target", "kl_horizon", "lora_alpha",
    )  # fmt: skip
    require_above_zero(**{name: getattr(config, name) for name in positive})
    may_be_off = ("clip_range_high", "dual_clip", "step_kl_target", "value_clip", "reward_clip", "target_kl")
    switched_on = {name: value for name in may_be_off if (value := getattr(config, name)) is not None}
    require_above_zero(**switched_on)
    fractions = ("gamma", "gae_lambda", "final_lr_fraction", "clip_range")
    require_fraction(**{name: getattr(config, name) for name in fractions})


def _check_choices(config: Config) -> None:
    require_choice(("sft", "dpo"), start_from=config.start_from)
    require_choice(ADVANTAGES, advantage=config.advantage)
    require_choice(BASELINES, baseline=config.baseline)
    require_choice(OBJECTIVES, objective=config.objective)
    require_choice(AGGREGATIONS, aggregation=config.aggregation)
    require_choice(("separate", "shared"), value_model=config.value_model)
    require_choice(("reward", "loss"), kl_place=config.kl_place)
    require_choice(KL_ESTIMATORS, kl_estimator=config.kl_estimator)
    require_choice(("fixed", "adaptive"), kl_controller=config.kl_controller)
    require_choice(("mean", "worst", "uncertainty"), reward_combination=config.reward_combination)
    require_choice(("frozen", "adapter_off"), reference=config.reference)
    require_choice(("none", "easy_first"), curriculum=config.curriculum)
    require_choice(PRECISIONS, precision=config.precision)


def _conflicts(config: Config) -> list[tuple[bool, str]]:
    """Conditions that refuse a configuration, each with its sentence."""
    c, grouped, shared = config, config.advantage in GROUP_ADVANTAGES, config.value_model == "shared"
    in_trust_region = {
        "kl_place": c.kl_place == "loss", "entropy_coef": c.entropy_coef > 0, "ptx_coef": c.ptx_coef > 0,
        "mask_cut": c.mask_cut, "value_model": shared and c.needs_values,
    }  # fmt: skip
    return [
        (c.rollouts % c.step_rollouts > 0, f"minibatch is {c.minibatch}, wanted a divisor of rollouts = {c.rollouts}"),
        (c.rollouts % c.group_size > 0, f"group_size is {c.group_size}, wanted a divisor of rollouts = {c.rollouts}"),
        (max(c.warmup_updates, c.value_warmup_updates) >= c.updates,
         f"warmup_updates and value_warmup_updates must be less than updates = {c.updates}"),
        (c.kl_controller == "adaptive" and c.kl_coef == 0,
         "kl_coef is 0, wanted a number above 0 since the adaptive controller only multiplies it"),
        (grouped and c.group_size < 2,
         f"group_size is {c.group_size}, wanted at least 2 since advantage {c.advantage} compares answers to a prompt"),
        (grouped and c.gamma != 1,
         f"gamma is {c.gamma}, wanted 1 since advantage {c.advantage} treats a response as one action"),
        (c.baseline != "none" and c.advantage not in ("reward_to_go", "full_return"),
         f"baseline is {c.baseline}, wanted none since advantage {c.advantage} has a baseline of its own"),
        (c.dynamic_sampling > 0 and c.group_size < 2,
         f"dynamic_sampling is {c.dynamic_sampling}, wanted 0 with group_size 1 since one answer always equals itself"),
        (c.overlong_buffer > c.max_new_tokens,
         f"overlong_buffer is {c.overlong_buffer}, wanted at most max_new_tokens = {c.max_new_tokens}"),
        (c.kl_place == "loss" and c.kl_estimator == "k1" and c.kl_coef > 0,
         "kl_estimator is k1 with kl_place loss, wanted k2 since the mean gradient of k1 is 0"),
        (c.dual_clip is not None and c.objective not in CLIPPED,
         f"dual_clip is {c.dual_clip}, wanted null since objective {c.objective} clips nothing"),
        (c.dual_clip is not None and not c.dual_clip > 1 + c.clip_high,
         f"dual_clip is {c.dual_clip}, wanted more than 1 + clip_range_high = {1 + c.clip_high}"),
        (c.step_kl_target is not None and (c.objective not in PENALISED or c.step_kl_coef == 0),
         f"step_kl_target is {c.step_kl_target}, wanted null unless objective is penalised and step_kl_coef above 0"),
        (c.reference == "adapter_off" and c.lora_rank == 0,
         "reference is adapter_off, wanted frozen since lora_rank is 0 and there is no adapter to switch off"),
        (c.value_lora_rank > 0 and shared,
         f"value_lora_rank is {c.value_lora_rank}, wanted 0 since value_model shared has no trunk of its own to adapt"),
        *((c.objective == "trust_region" and wrong,
           f"{name} is {getattr(c, name)}, which objective trust_region has no place for; use clipped")
          for name, wrong in in_trust_region.items()),
    ]  # fmt: skip
