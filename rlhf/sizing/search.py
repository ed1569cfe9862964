"""The cheapest setting that fits: the quickest one among those that give the same result, else one that changes it.

Order: what changes results by rounding only (ZeRO stage, checkpointing, offload, micro-batch) on the GPUs there are;
then LoRA of policy and value model, with a reference that is the policy without its adapter; then LoRA with values
from a head on the policy; then more GPUs, in the same order. Within a step of this order the quickest by
`rlhf.sizing.timing` wins.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhf.sizing.memory import Estimate, estimate
from rlhf.sizing.setting import IDEAL, Setting
from rlhf.sizing.timing import Gpu, Timing, timing

RANK = 16
"""Of an adapter that was not asked for."""
MOST_GPUS = 1024
MOST_MICRO = 64
EASY = ("whole_load", "whole_rollout", "frozen_split", "casts_kept", "weights")
"""Changes to an engine, the smallest first."""


@dataclass(frozen=True, slots=True)
class Found:
    """A setting that fits."""

    estimate: Estimate
    timing: Timing

    @property
    def setting(self) -> Setting:
        """What fits."""
        return self.estimate.setting


def cheapest(setting: Setting, gpu: Gpu, *, host: float | None = None, more: bool = True) -> Found | None:
    """The cheapest setting that fits.

    Args:
        setting: what was asked for.
        gpu: what on.
        host: memory of one computer, bytes; None when unknown, and then anything fits it.
        more: go on to more GPUs.

    Returns:
        The first step of the order that has one; None when nothing fits up to `MOST_GPUS`.
    """
    for option in (setting, *adapted(setting)):
        found = quickest(option, gpu, host)
        if found is not None:
            return found
    return more_gpus(setting, gpu, host=host) if more else None


def more_gpus(setting: Setting, gpu: Gpu, *, host: float | None = None) -> Found | None:
    """The cheapest setting on the fewest GPUs, doubled at a time, that can train all weights, else an adapter."""
    for option in (setting, *adapted(setting)):
        count = setting.gpus * 2
        while count <= MOST_GPUS:
            least: dict[str, Any] = {"batch": max(option.batch, count), "rollouts": max(option.rollouts, count)}
            found = quickest(dataclasses.replace(option, gpus=count, **least), gpu, host)
            if found is not None:
                return found
            count *= 2
    return None


def what_is_lacking(setting: Setting, gpu: Gpu, *, host: float | None = None) -> tuple[tuple[str, ...], Found] | None:
    """The fewest changes to the engine with which something would fit the GPUs there are.

    Args:
        setting: what was asked for, which does not fit.
        gpu: what on.
        host: memory of one computer, bytes.

    Returns:
        Names of the fields of `Holds` that would be as in `IDEAL`, and the cheapest setting then; None when not even
        all of them are enough.
    """
    names = [name for name in EASY if getattr(setting.holds, name) != getattr(IDEAL, name)]
    for count in range(1, len(names) + 1):
        fits = []
        for chosen in itertools.combinations(names, count):
            holds = dataclasses.replace(setting.holds, **{name: getattr(IDEAL, name) for name in chosen})
            found = cheapest(dataclasses.replace(setting, holds=holds), gpu, host=host, more=False)
            if found is not None:
                fits.append((chosen, found))
        if fits:
            return min(fits, key=lambda pair: [EASY.index(name) for name in pair[0]])
    return None


def adapted(setting: Setting) -> list[Setting]:
    """The same with adapters where it has none; and then with values from a head on the policy."""
    if setting.lora_rank:
        return []
    changes: dict[str, Any] = {"lora_rank": RANK}
    if setting.reference == "frozen":
        changes["reference"] = "adapter_off"
    if setting.value_model != "separate":
        return [dataclasses.replace(setting, **changes)]
    own = dataclasses.replace(setting, **changes, value_lora_rank=setting.value_lora_rank or RANK)
    return [own, dataclasses.replace(setting, **changes, value_model="shared")]


def quickest(asked: Setting, gpu: Gpu, host: float | None) -> Found | None:
    """The quickest of all variants that fit; of equals the one with fewest changes."""
    best: Found | None = None
    for setting in variants(asked):
        reckoned = estimate(setting)
        if not reckoned.fits or (host is not None and reckoned.host_total > host):
            continue
        found = Found(reckoned, timing(setting, gpu))
        if best is None or found.timing.total < 0.999 * best.timing.total:
            best = found
    return best


def variants(setting: Setting) -> Iterator[Setting]:
    """All settings that give the same result but for rounding, those first that ask for little."""
    stages = (2, 0, 1, 3) if setting.gpus > 1 else (setting.zero_stage,)
    moves = ("none", "optimizer", "parameters") if setting.gpus > 1 else ("none",)
    sizes = [size for size in (2**power for power in range(MOST_MICRO.bit_length())) if size <= setting.share]
    for move, stage, again, size in itertools.product(moves, stages, (False, True), reversed(sizes)):
        if (move != "none" and stage < 2) or (move == "parameters" and stage != 3):
            continue
        yield dataclasses.replace(
            setting, offload=move, zero_stage=stage, activation_checkpointing=again, micro_batch=size
        )
