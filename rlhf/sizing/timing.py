"""Rough time of an update from its floating-point operations, its traffic, and assumed shares of the peaks.

A forward pass of a token takes 2 operations per weight of a matrix, and 2 s a per block for causal attention over s
tokens (a the width of the queries; half of the s^2 scores exist). A backward pass takes twice that; with an adapter
once, since frozen weights need no gradient; with checkpointing a forward pass more. Source: Kaplan et al. 2020, section
2.1, https://arxiv.org/abs/2001.08361.

Sampling a token reads all weights and the cache once: it is bound by memory until rows are many.
"""

from dataclasses import dataclass

from rlhf.errors import BadInput
from rlhf.sizing.activations import cache
from rlhf.sizing.memory import optimizer_bytes, width
from rlhf.sizing.setting import Role, Setting, roles


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU by its data sheet, and what share of that is expected."""

    name: str
    memory: float
    """Bytes."""
    half: float
    """Dense bf16 operations per second."""
    single: float
    """fp32 operations per second; TF32 is off here."""
    bandwidth: float
    """Of its memory, bytes per second."""
    link: float
    """To other GPUs of the machine, bytes per second in one direction."""
    utilisation: float = 0.4
    """Assumed share of the peak operations in training and in reading prompts."""
    decoding: float = 0.5
    """Assumed share of the memory's bandwidth in sampling."""
    launches: float = 2e-4
    """Assumed seconds of Python per block and sampled token."""
    host: float = 2e10
    """Assumed bytes per second between the computer's memory and all that one GPU needs of it."""
    network: float = 2.5e10
    """Assumed bytes per second between machines, for each GPU."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="A100", memory=80e9, half=312e12, single=19.5e12, bandwidth=2.04e12, link=300e9),
        Gpu(name="H100", memory=80e9, half=989e12, single=67e12, bandwidth=3.35e12, link=450e9),
        Gpu(name="H200", memory=141e9, half=989e12, single=67e12, bandwidth=4.8e12, link=450e9),
        Gpu(name="A100-40", memory=40e9, half=312e12, single=19.5e12, bandwidth=1.56e12, link=300e9),
        Gpu(name="L40S", memory=48e9, half=362e12, single=91.6e12, bandwidth=0.864e12, link=32e9),
        Gpu(name="A10", memory=24e9, half=125e12, single=31.2e12, bandwidth=0.6e12, link=32e9),
        Gpu(name="RTX4090", memory=24e9, half=165e12, single=82.6e12, bandwidth=1.01e12, link=32e9),
    )
}
"""NVIDIA's data sheets: dense rates, without sparsity."""


def gpu_of(name: str) -> Gpu:
    """A GPU by name.

    Raises:
        BadInput: unknown.
    """
    for known, gpu in GPUS.items():
        if known.lower() == name.lower():
            return gpu
    raise BadInput(f"--gpu {name}: not known; wanted one of {', '.join(GPUS)}")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of an update (of an optimizer step, where nothing is sampled) by part."""

    parts: dict[str, float]
    elements: int
    """Rollouts, pairs or demonstrations that an update takes."""

    @property
    def total(self) -> float:
        """Seconds of an update."""
        return sum(self.parts.values())

    @property
    def per_element(self) -> float:
        """Seconds of one rollout, pair or demonstration."""
        return self.total / self.elements


def timing(setting: Setting, gpu: Gpu) -> Timing:
    """Time of an update, every row of full length.

    Args:
        setting: what is trained, and how.
        gpu: what on.
    """
    trained = [role for role in roles(setting) if role.trained]
    steps, each = _steps(setting), _rows(setting)
    parts = {"sampling": 0.0, "scoring": 0.0}
    if setting.samples:
        rows = -(-setting.rollouts // setting.gpus)
        parts["sampling"] = _sampling(setting, gpu, rows)
        scored = sum(_forward(setting, role, rows) for role in [trained[0], *roles(setting)[1:]])
        if setting.reference == "adapter_off":
            scored += _forward(setting, trained[0], rows)
        parts["scoring"] = scored / _rate(setting, gpu)
    parts["training"] = training_operations(setting) / _rate(setting, gpu)
    if setting.proposer:
        parts["scoring"] = _forward(setting, roles(setting)[1], each) / _rate(setting, gpu)
    parts["exchange"] = steps * sum(_exchange(setting, role, gpu) for role in trained)
    parts["offload"] = steps * sum(_offload(setting, role, gpu) for role in trained)
    return Timing(parts, setting.rollouts if setting.samples else setting.share * setting.gpus)


def training_operations(setting: Setting) -> float:
    """Operations of the training part of an update on one GPU, recomputation included."""
    return sum(_train(setting, role, _rows(setting)) for role in roles(setting) if role.trained)


def _steps(setting: Setting) -> int:
    """Optimizer steps of an update."""
    return setting.epochs * max(1, setting.rollouts // setting.batch) if setting.samples else 1


def _rows(setting: Setting) -> float:
    """Rows that one GPU trains on in an update."""
    return _steps(setting) * setting.share * setting.sequences


def _rate(setting: Setting, gpu: Gpu) -> float:
    return gpu.utilisation * (gpu.single if setting.precision == "float32" else gpu.half)


def _forward(setting: Setting, role: Role, rows: float) -> float:
    """Operations of a forward pass over rows; the output matrix runs at response tokens only."""
    shape = setting.shape
    attention = 2 * setting.tokens * shape.query_width * shape.layers
    inside = (2 * shape.matrices + attention) * setting.tokens
    return rows * (inside + 2 * role.head * setting.response_tokens)


def _train(setting: Setting, role: Role, rows: float) -> float:
    """Operations of forward and backward passes over rows."""
    times = 2 if role.adapted else 3
    return (times + setting.activation_checkpointing) * _forward(setting, role, rows)


def _sampling(setting: Setting, gpu: Gpu, rows: int) -> float:
    """Seconds of reading the prompts and of one step per response token, at full length."""
    shape, policy = setting.shape, roles(setting)[0]
    weights = shape.matrices + policy.head
    prompts = rows * setting.prompt_tokens * 2 * shape.matrices / _rate(setting, gpu)
    # Copies to bf16 are kept for trained weights only; others are read in fp32, written and read again in each step.
    afresh = setting.casts and (policy.adapted or setting.zero == 3)
    each = 8 if afresh else 2 if setting.precision == "bfloat16" else 4
    half_full = 0.5 * (1 + setting.prompt_tokens / setting.tokens) * cache(shape, setting, rows)
    reading = (each * weights + half_full) / (gpu.decoding * gpu.bandwidth)
    computing = rows * 2 * weights / _rate(setting, gpu)
    step = max(reading, computing, gpu.launches * shape.layers)
    if setting.zero == 3 and not setting.holds.whole_rollout:
        step += width(setting) * policy.total * (1 - 1 / setting.gpus) / _link(setting, gpu)
    if setting.moved == "parameters" and not setting.holds.whole_rollout:
        step += width(setting) * policy.total / setting.gpus / gpu.host
    return prompts + setting.response_tokens * step


def _link(setting: Setting, gpu: Gpu) -> float:
    """Bytes per second at which all GPUs exchange weights."""
    return gpu.network if setting.gpus > setting.gpus_per_node else gpu.link


def _exchange(setting: Setting, role: Role, gpu: Gpu) -> float:
    """Seconds of an optimizer step's exchange between GPUs: gradients summed, weights fetched.

    Stages 0 to 2 exchange twice the trained weights a step (ZeRO-2 once for every pass); ZeRO-3 fetches all weights
    for each forward and each backward pass and sums the gradients. Rajbhandari et al. 2020, section 7.
    """
    if setting.gpus == 1:
        return 0.0
    away, each = 1 - 1 / setting.gpus, width(setting)
    if setting.zero == 3:
        fetched = (2 + setting.activation_checkpointing) * setting.passes * each * role.total
        return away * (fetched + setting.passes * each * role.trained) / _link(setting, gpu)
    sums = setting.passes if setting.zero == 2 else 1
    return away * each * role.trained * (1 + sums) / _link(setting, gpu)


def _offload(setting: Setting, role: Role, gpu: Gpu) -> float:
    """Seconds of an optimizer step's traffic with the computer's memory, the optimizer's own on its CPU included."""
    if setting.moved == "none":
        return 0.0
    share = role.trained / setting.gpus
    # Gradients there and weights back; the CPU reads and writes state, masters and gradients.
    seconds = (8 * share + 2 * optimizer_bytes(setting, role.trained) + 8 * share) / gpu.host
    if setting.moved == "parameters":
        passes = (2 + setting.activation_checkpointing) * setting.passes
        seconds += passes * width(setting) * role.total / setting.gpus / gpu.host
    return seconds
