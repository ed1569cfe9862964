"""Memory of one GPU by part at the moments at which it may peak, and memory of the computer.

P weights, T of them trained, N GPUs, fp32 weights (4 bytes), AdamW. What each holds of a trained model:

              weights   gradients   optimizer
    1 GPU     4 P       4 T         8 T                      two moments; the weights are the fp32 masters
    ZeRO-0    4 P       4 T         8 T
    ZeRO-1    4 P       4 T         12 T / N                 DeepSpeed keeps an fp32 copy of its part
    ZeRO-2    4 P       4 T / N     12 T / N
    ZeRO-3    4 P / N   4 T / N     12 T / N

Source: Rajbhandari et al. 2020, "ZeRO", section 3 and figure 1, https://arxiv.org/abs/1910.02054, for the shares; bytes
are those of this engine, which keeps fp32 weights and casts them to bf16 for the forward pass.
"""

from dataclasses import dataclass

from rlhf.sizing import activations
from rlhf.sizing.setting import Role, Setting, roles

PARTS = ("weights", "frozen models", "gradients", "optimizer", "bf16 copies", "activations", "logits", "KV cache",
         "gather", "buffers", "reserve")  # fmt: skip
BUCKET = 5e8
"""Elements of DeepSpeed's buffer for gradients on their way, `reduce_bucket_size`; taken whole by every engine."""
GROUP = 1e9
"""Elements that ZeRO-3 updates at once, `sub_group_size`."""
CONTEXT = 2e9
"""Bytes of the CUDA context, cuBLAS and NCCL. A judgement, not measured here."""
SLACK = 0.1
"""Share of what comes and goes in a step that is lost between blocks of the allocator. A judgement, not measured."""
PROCESS = 3e9
"""Bytes of a rank's Python with torch and DeepSpeed in the computer's memory."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Memory of one GPU at one point of an update."""

    name: str
    parts: dict[str, float]
    """Bytes by name."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a setting needs."""

    setting: Setting
    moments: tuple[Moment, ...]
    host: dict[str, float]
    """Bytes of the memory of one computer, by part."""

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def host_total(self) -> float:
        """Bytes of one computer at its peak: loading is over when the optimizer and checkpoints begin."""
        rest = sum(size for name, size in self.host.items() if name not in ("processes", "loading"))
        return self.host["processes"] + max(self.host["loading"], rest)

    @property
    def fits(self) -> bool:
        """Whether the peak fits one GPU."""
        return self.peak.total <= self.setting.memory


def estimate(setting: Setting, *, reserve: bool = True) -> Estimate:
    """Memory of a setting.

    Args:
        setting: what is trained, and how.
        reserve: add what CUDA and the allocator take; False to compare with tensors measured on a CPU.
    """
    found = [_training(setting)]
    if setting.gpus > 1:
        found.append(_step(setting))
        if setting.zero == 3 and setting.holds.whole_load:
            found.insert(0, _loading(setting))
    if setting.samples:
        found.insert(-1 if setting.gpus > 1 else 0, _rollout(setting))
    moments = tuple(Moment(moment.name, _with_reserve(moment.parts, reserve)) for moment in found)
    return Estimate(setting, moments, _host(setting))


def width(setting: Setting) -> int:
    """Bytes of one weight."""
    return 2 if setting.holds.weights == "bfloat16" else 4


def _held(setting: Setting) -> dict[str, float]:
    """What lies on a GPU at all times: weights, frozen models, the optimizer."""
    split = setting.gpus if setting.zero == 3 else 1
    each, weights, frozen, optimizer = width(setting), 0.0, 0.0, 0.0
    for role in roles(setting):
        adapter = role.trained if role.adapted else 0
        if not role.trained:
            frozen += each * role.total / (split if setting.holds.frozen_split else 1)
            continue
        optimizer += optimizer_bytes(setting, role.trained)
        if setting.moved != "parameters":
            weights += (each * role.total + 4 * adapter) / split
        # Every rank keeps the output matrix whole.
        weights += each * role.head * (1 - 1 / split)
    if setting.moved == "parameters" and setting.holds.frozen_split:
        frozen = 0.0
    return {"weights": weights, "frozen models": frozen, "optimizer": 0.0 if setting.moved != "none" else optimizer}


def optimizer_bytes(setting: Setting, trained: int) -> float:
    """Bytes of the optimizer's state of one GPU: moments, and fp32 masters where the weights are none themselves."""
    moments = 2 if setting.optimizer == "adamw_8bit" else 8
    masters = 4 if setting.zero > 0 or setting.holds.weights == "bfloat16" else 0
    return (moments + masters) * trained / (setting.gpus if setting.zero > 0 else 1)


def _gradients(setting: Setting, role: Role) -> float:
    """Bytes of the gradients of one model on one GPU after a backward pass."""
    if setting.moved != "none" and setting.zero >= 2:
        return 0.0
    each = 4 if role.adapted else width(setting)
    return each * role.trained / (setting.gpus if setting.zero >= 2 else 1)


def _training(setting: Setting) -> Moment:
    """A backward pass: at its start all activations, at its end all gradients; the larger of both.

    With several passes in a step the gradients of the first ones are there from the start.
    """
    shape, trained = setting.shape, [role for role in roles(setting) if role.trained]
    first = trained[0]
    kept = [activations.kept(shape, setting, adapted=role.adapted) for role in trained]
    at_loss, later = activations.loss(first, setting)
    moving = activations.moving(shape, setting)
    # Both forward passes come before either backward pass; the value model's backward pass is the first of them.
    alone = {"activations": kept[0], "logits": at_loss}
    together = {"activations": sum(kept) + activations.again(shape, setting) + moving}
    # The policy's logits wait while the value model, whose backward pass is first, computes its blocks again.
    together["logits"] = later if len(trained) > 1 or not setting.activation_checkpointing else 0.0
    start = max(alone, together, key=lambda moment: sum(moment.values()))
    start["bf16 copies"] = sum(_copies(setting, role) for role in trained)
    gradients = sum(_gradients(setting, role) for role in trained)
    start["gradients"] = gradients if setting.passes > 1 or setting.zero == 3 else 0.0
    # The gradient of the output matrix is computed beside the one that it is added to.
    largest = 4.0 * max(first.head if not first.adapted else 0, shape.hidden * shape.intermediate)
    end = {"activations": moving, "gradients": gradients + largest}
    late = max(start, end, key=lambda moment: sum(moment.values()))
    buffers = BUCKET * width(setting) * len(trained) if setting.zero else 0.0
    return Moment("training", _held(setting) | late | {"buffers": buffers, "gather": _live(setting)})


def _copies(setting: Setting, role: Role) -> float:
    """Bytes of bf16 copies of fp32 weights, which the graph of the backward pass keeps for every matrix.

    Autocast also keeps those of trained weights until the forward pass ends. Under ZeRO-3 DeepSpeed's own linear layer
    keeps the weight itself, so that copies live for one product each.
    """
    if not setting.casts:
        return 0.0
    shape, again = setting.shape, setting.activation_checkpointing
    if setting.zero == 3 or (again and (role.adapted or not setting.holds.casts_kept)):
        return 2.0 * max(role.head, shape.hidden * shape.intermediate if setting.zero == 3 else shape.block)
    return 2.0 * (shape.matrices + role.head)


def _live(setting: Setting) -> float:
    """Bytes of the one matrix that ZeRO-3 has gathered at a time: nothing is fetched ahead."""
    shape = setting.shape
    return float(width(setting) * max(shape.head, shape.hidden * shape.intermediate)) if setting.zero == 3 else 0.0


def _step(setting: Setting) -> Moment:
    """The optimizer's step of DeepSpeed, which lays the gradients of a part end to end before it."""
    every = [role for role in roles(setting) if role.trained]
    part = max(role.trained for role in every) / (setting.gpus if setting.zero else 1)
    copies = 4.0 * (min(part, GROUP) if setting.zero == 3 else part if setting.zero else 0)
    gradients = sum(_gradients(setting, role) for role in every)
    return Moment("step", _held(setting) | {"gradients": gradients, "buffers": copies})


def _loading(setting: Setting) -> Moment:
    """Models that will be trained whole on every GPU, before ZeRO-3 takes its part, and the last of the frozen ones."""
    every, each = roles(setting), float(width(setting))
    frozen = [role.total for role in every if not role.trained]
    split = setting.gpus if setting.holds.frozen_split else 1
    kept = sum(frozen) / split + max(frozen, default=0) * (1 - 1 / split)
    whole = sum(role.total for role in every if role.trained)
    return Moment("loading", {"weights": each * whole, "frozen models": each * kept})


def _rollout(setting: Setting) -> Moment:
    """Sampling: the cache of all of a GPU's rows, and the whole policy where ZeRO-3 had split it."""
    shape, policy = setting.shape, roles(setting)[0]
    rows = -(-setting.rollouts // setting.gpus)
    gather = 0.0
    if setting.zero == 3:
        gather = float(width(setting) * policy.total) if setting.holds.whole_rollout else _live(setting)
    copies = 0.0
    if setting.casts:
        kept = setting.holds.casts_kept and not policy.adapted and setting.zero < 3
        copies = 2.0 * (shape.matrices + policy.head if kept else policy.head)
    return Moment("rollout", _held(setting) | {
        "gradients": sum(_gradients(setting, role) for role in roles(setting)) if setting.zero == 3 else 0.0,
        "bf16 copies": copies,
        "activations": activations.prefill(shape, setting, rows),
        "logits": float(activations.SAMPLING * rows * shape.vocabulary),
        "KV cache": activations.cache(shape, setting, rows),
        "gather": gather,
    })  # fmt: skip


def _with_reserve(parts: dict[str, float], reserve: bool) -> dict[str, float]:
    """The parts in their order, with what CUDA and the allocator take."""
    passing = ("bf16 copies", "activations", "logits", "KV cache", "gather", "buffers")
    extra = CONTEXT + SLACK * sum(parts.get(name, 0.0) for name in passing) if reserve else 0.0
    return {name: parts.get(name, extra if name == "reserve" else 0.0) for name in PARTS}


def _host(setting: Setting) -> dict[str, float]:
    """Bytes of the memory of one computer with its share of the ranks."""
    ranks, each = min(setting.gpus, setting.gpus_per_node), width(setting)
    every, share = roles(setting), ranks / setting.gpus
    trained = [role for role in every if role.trained]
    found = {"processes": PROCESS * ranks, "loading": float(each * ranks * max(role.total for role in every))}
    # Trained weights and two moments in fp32, each rank its pieces.
    found["checkpoint"] = 12.0 * share * sum(role.trained for role in trained)
    if setting.moved != "none":
        whole = sum(optimizer_bytes(setting, role.trained) * setting.gpus for role in trained)
        found["optimizer"] = share * whole
        found["gradients"] = share * sum(4.0 * role.trained for role in trained)
    if setting.moved == "parameters":
        kept = every if setting.holds.frozen_split else trained
        found["weights"] = share * sum(float(each * role.total) for role in kept)
    return found
