"""Settings of the reward recipe, which makes the reward model and the judge."""

from dataclasses import dataclass

from rlhf.device import PRECISIONS
from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.losses.rankings import RANKING_LOSSES
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction
from rlhf.reward_model import POOLINGS


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Parameters of the stages `reward` and `judge`."""

    pooling: str
    """Where the score is read: "last" response token, or "mean" or "sum" of the head over the response."""
    scale: float
    """Factor on the pooled head, above 0; with "sum" about 1 / 8, so that scores start out small."""
    learning_rate: float
    """Peak rate of AdamW, above 0."""
    batch_size: int
    """Pairs and rankings per update, over all ranks."""
    micro_batch: int | None
    """Of them, per forward pass on one rank; null means the whole share of the rank. Does not change results."""
    epochs: float
    """Passes over the pairs, above 0; may be a fraction. Large models overfit after 1."""
    centering: float
    """Weight of the squared sum of a pair's scores, which keeps scores near 0; 0 or more, usually 0.01."""
    margin_coef: float
    """Margin of a pair, reward units per unit that the annotator's two scores lie apart, where the record has them; 0
    or more. The better answer then has to be ahead by that much."""
    ranking_loss: str
    """What is learnt from a ranking: all its "pairs", or its order by "plackett_luce"."""
    members: int
    """Models of the ensemble, at least 1; they differ by their heads' first weights and the order of the pairs."""
    member_share: float
    """Share of the pairs and rankings that a member is trained on, drawn for each, above 0 and at most 1."""
    warmup_fraction: float
    """Share of the updates in which the rate rises, in [0, 1)."""
    final_lr_fraction: float
    """Share of the peak rate that is left at the end of the cosine, in [0, 1]."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 means never."""
    weight_decay: float
    """Decoupled weight decay of AdamW, 0 or more."""
    max_tokens: int
    """Longest prompt + response, tokens; longer responses are cut, pairs with longer prompts dropped."""
    max_pairs: int | None
    """Train on the first so many pairs; null means all."""
    precision: str
    """Format of the trunk: "auto" (bfloat16 on a GPU, float32 on a CPU), "float32" or "bfloat16"; the head is fp32."""
    swap_weight: float
    """Weight of the replaced-token loss, 0 or more; 0 leaves the preference loss alone and saves its cost."""
    swap_share: float
    """Share of the pairs whose chosen answer is also shown with facts of another prompt, from 0 to 1."""
    normalise_samples: int
    """Answers of the SFT policy that define score 0 (their mean) and 1 (one standard deviation), at least 2."""
    max_new_tokens: int
    """Longest such answer, tokens."""
    lora_rank: int = 0
    """Width of a LoRA adapter of the trunk, which is then trained with the head alone and merged at the end; 0: all."""
    lora_alpha: float = 16.0
    """Strength of the adapter: its product is multiplied by lora_alpha / lora_rank, above 0."""
    engine: EngineSettings = DEFAULTS
    """How it is trained on the devices there are: ZeRO, offload, checkpointing and the like."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a field is out of range.
        """
        require_above_zero(learning_rate=self.learning_rate, epochs=self.epochs, scale=self.scale)
        require_above_zero(lora_alpha=self.lora_alpha)
        require_at_least(0, lora_rank=self.lora_rank)
        require_at_least(1, batch_size=self.batch_size, micro_batch=self.micro_batch, max_tokens=self.max_tokens)
        require_at_least(1, max_pairs=self.max_pairs, max_new_tokens=self.max_new_tokens)
        require_at_least(2, normalise_samples=self.normalise_samples)
        require_at_least(0, centering=self.centering, max_grad_norm=self.max_grad_norm, weight_decay=self.weight_decay)
        require_at_least(0, swap_weight=self.swap_weight, margin_coef=self.margin_coef)
        require_at_least(1, members=self.members)
        require_above_zero(member_share=self.member_share)
        require_fraction(swap_share=self.swap_share, member_share=self.member_share)
        require_fraction(warmup_fraction=self.warmup_fraction, final_lr_fraction=self.final_lr_fraction)
        require_choice(PRECISIONS, precision=self.precision)
        require_choice(POOLINGS, pooling=self.pooling)
        require_choice(RANKING_LOSSES, ranking_loss=self.ranking_loss)
