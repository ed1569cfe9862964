"""Settings of the stage `dpo`: which preference objective, and how it is trained."""

from dataclasses import dataclass

from rlhf.device import PRECISIONS
from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction

OBJECTIVES = ("dpo", "ipo", "kto")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Parameters of the stage `dpo`."""

    objective: str
    """"dpo" (with label_smoothing: cDPO) or "ipo" learn from pairs, "kto" from single judgements; a pair is two."""
    beta: float
    """Implicit reward per nat of change, above 0; larger stays closer to the reference."""
    label_smoothing: float
    """Share of the labels that are thought wrong, in [0, 0.5); of "dpo" only."""
    length_normalised: bool
    """Whether log-probabilities are means over a response's tokens; beta then counts nats per token. Not of "kto"."""
    reference_free: bool
    """Whether the reward is beta log pi, without a reference. Not of "kto"."""
    nll_coef: float
    """Weight of the negative log-likelihood per token of the preferred answer, at least 0. Not of "kto"."""
    desirable_weight: float
    """Weight of good answers, above 0; of "kto" only."""
    undesirable_weight: float
    """Weight of bad answers, above 0; of "kto" only."""
    lora_rank: int
    """Rank of the low-rank adapter that is trained in place of the weights; 0 trains the weights."""
    lora_alpha: float
    """Scale of the adapter, above 0: its product is multiplied by lora_alpha / lora_rank."""
    learning_rate: float
    """Peak rate of AdamW, above 0."""
    batch_size: int
    """Pairs (judgements) per update, over all ranks."""
    micro_batch: int | None
    """Pairs per forward pass on one rank; null means the whole share of the rank. Does not change results."""
    epochs: float
    """Passes over the pairs, above 0; may be a fraction."""
    warmup_fraction: float
    """Share of the updates in which the rate rises, in [0, 1)."""
    final_lr_fraction: float
    """Share of the peak rate that is left at the end of the cosine, in [0, 1]."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 means never."""
    max_tokens: int
    """Longest prompt + response, tokens; a pair with a longer side is dropped: nobody has judged half an answer."""
    max_pairs: int | None
    """Only the first so many pairs (and as many judgements) are used; null for all."""
    max_new_tokens: int
    """Longest sampled answer, tokens."""
    sample_every: int
    """Updates between samples for people to read, at least 1."""
    precision: str
    """"auto" (bfloat16 on a GPU, float32 on a CPU), "float32" or "bfloat16"."""
    engine: EngineSettings = DEFAULTS
    """How it is trained on the devices there are: ZeRO, offload, checkpointing and the like."""

    def __post_init__(self) -> None:
        """Check ranges, and that nothing is set which the objective would not read.

        Raises:
            ValueError: a field is out of range or does not belong to the objective.
        """
        require_choice(OBJECTIVES, objective=self.objective)
        require_choice(PRECISIONS, precision=self.precision)
        require_above_zero(
            beta=self.beta, learning_rate=self.learning_rate, epochs=self.epochs, lora_alpha=self.lora_alpha,
            desirable_weight=self.desirable_weight, undesirable_weight=self.undesirable_weight,
        )  # fmt: skip
        require_at_least(
            1, batch_size=self.batch_size, micro_batch=self.micro_batch, max_tokens=self.max_tokens,
            max_pairs=self.max_pairs, max_new_tokens=self.max_new_tokens, sample_every=self.sample_every,
        )  # fmt: skip
        require_at_least(
            0, max_grad_norm=self.max_grad_norm, label_smoothing=self.label_smoothing, nll_coef=self.nll_coef,
            lora_rank=self.lora_rank,
        )  # fmt: skip
        require_fraction(warmup_fraction=self.warmup_fraction, final_lr_fraction=self.final_lr_fraction)
        if not self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, wanted less than 0.5")
        if not self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}, wanted less than 1")
        self._check_objective()

    def _check_objective(self) -> None:
        foreign = {
            "label_smoothing": self.label_smoothing != 0 and self.objective != "dpo",
            "length_normalised": self.length_normalised and self.objective == "kto",
            "reference_free": self.reference_free and self.objective == "kto",
            "nll_coef": self.nll_coef != 0 and self.objective == "kto",
            "desirable_weight": self.desirable_weight != 1 and self.objective != "kto",
            "undesirable_weight": self.undesirable_weight != 1 and self.objective != "kto",
        }
        for name, is_foreign in foreign.items():
            if is_foreign:
                raise ValueError(
                    f"{name} is {getattr(self, name)} but the objective {self.objective} has no such part; "
                    "leave it at its default"
                )
        if self.objective == "kto" and self.batch_size < 2:
            raise ValueError("batch_size is 1, wanted 2 or more: kto compares with the answers to other prompts")
