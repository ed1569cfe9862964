"""How an engine trains, as against what it learns: settings that change speed and memory, and results by rounding."""

from dataclasses import dataclass

from rlhf.ranges import require_above_zero, require_choice

OFFLOADS = ("none", "optimizer", "parameters")
MATMULS = ("native", "onednn")
OPTIMIZERS = ("adamw", "adamw_8bit")
ATTENTIONS = ("auto", "sdpa", "eager", "flash_attention_2")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """The mapping `engine` of a training stage; keys that are left out have the values below."""

    zero_stage: int = 2
    """What ranks split instead of each holding it all: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 weights
    too; read with several ranks only."""
    offload: str = "none"
    """What lies in the computer's memory instead of the GPU's: "none", "optimizer", or "parameters" (the optimizer's
    state too; zero_stage 3 only); several ranks only."""
    activation_checkpointing: bool = False
    """Whether the backward pass computes a block again instead of keeping what it computed: less memory, more time."""
    timeout_s: float = 600.0
    """How long a rank waits for the others before the stage fails, seconds, above 0."""
    matmul: str = "native"
    """What multiplies fp32 matrices on a CPU: "native" (torch's default) or "onednn"."""
    deterministic: bool = True
    """Whether a GPU computes equal bits from equal inputs; false lets it take faster kernels whose sums come in any
    order. A CPU computes the same either way."""
    optimizer: str = "adamw"
    """"adamw", or "adamw_8bit" (its state in 8 bits; a GPU and the package bitsandbytes)."""
    attention: str = "auto"
    """"auto" (torch's fused attention), "sdpa" (the same), "eager", or "flash_attention_2" (a GPU, bfloat16 and the
    package flash-attn)."""
    compile: bool = False
    """Whether torch.compile translates the blocks of the model; the first steps then take minutes. GPU only."""

    def __post_init__(self) -> None:
        """Check ranges, and what does not go together.

        Raises:
            ValueError: a field is out of range or does not go with another.
        """
        if self.zero_stage not in range(4):
            raise ValueError(f"zero_stage is {self.zero_stage}, wanted 0, 1, 2 or 3")
        require_choice(OFFLOADS, offload=self.offload)
        require_choice(MATMULS, matmul=self.matmul)
        require_choice(OPTIMIZERS, optimizer=self.optimizer)
        require_choice(ATTENTIONS, attention=self.attention)
        require_above_zero(timeout_s=self.timeout_s)
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(
                f"offload is parameters and zero_stage {self.zero_stage}, wanted zero_stage 3: only there do ranks not "
                "each need all weights"
            )
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload is optimizer and zero_stage 0, wanted zero_stage 1, 2 or 3, which know where to")
        if self.offload != "none" and self.optimizer != "adamw":
            raise ValueError(f"offload is {self.offload}, wanted none: {self.optimizer} runs on the GPU only")


DEFAULTS = EngineSettings()
"""What a stage is trained with that says nothing."""
