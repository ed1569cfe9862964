"""Recognising that memory ran out, and naming the settings that would make the stage fit."""

import re
from collections.abc import Mapping
from typing import Any

UNITS = {"bytes": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
AMOUNT = r"([\d.]+) (bytes|B|KiB|MiB|GiB|TiB)"
GPU_WANTED = re.compile(rf"Tried to allocate {AMOUNT}")
GPU_FREE = re.compile(rf"capacity of {AMOUNT} of which {AMOUNT} is free")
CPU_WANTED = re.compile(r"you tried to allocate (\d+) bytes")
LORA_RANK = 16


def explain(error: BaseException, section: Mapping[str, Any], *, ranks: int) -> str | None:
    """One sentence for an allocation that failed: by how much, and what would fit; None for any other error.

    Args:
        error: what ended the stage.
        section: the stage's section of params.yaml.
        ranks: how many take part.
    """
    text = " ".join(str(error).split())
    on_gpu = type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text
    on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in text
    if not (on_gpu or on_cpu):
        return None
    cures = _cures(section, ranks=ranks, on_gpu=on_gpu)
    cure = "try " + ", or ".join(cures) if cures else "it needs a smaller model, shorter sequences or more memory"
    where = "the GPU" if on_gpu else "this computer"
    return f"{where} ran out of memory{_amount(text)}; the last checkpoint is kept; {cure}"


def _amount(text: str) -> str:
    """How much was wanted and, where it is known, by how much it was too much."""
    if found := CPU_WANTED.search(text):
        return f": {_show(int(found[1]))} more were wanted"
    wanted = GPU_WANTED.search(text)
    if not wanted:
        return ""
    need = float(wanted[1]) * UNITS[wanted[2]]
    free = GPU_FREE.search(text)
    if not free:
        return f": {_show(need)} more were wanted"
    total, left = (float(free[at]) * UNITS[free[at + 1]] for at in (1, 3))
    return f": {_show(need)} more were wanted and {_show(left)} of {_show(total)} were free, {_show(need - left)} short"


def _show(count: float) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if count >= UNITS[unit]:
            return f"{count / UNITS[unit]:.3g} {unit}"
    return f"{count:.0f} bytes"


def _cures(section: Mapping[str, Any], *, ranks: int, on_gpu: bool) -> list[str]:
    """Settings that need less memory than those in force, what changes least first; at most four."""
    engine = section.get("engine")
    engine = engine if isinstance(engine, Mapping) else {}
    found = []
    if "micro_batch" in section:
        largest = section.get("batch_size") or section.get("minibatch") or section.get("rollouts")
        now = section["micro_batch"] or (largest // ranks if isinstance(largest, int) else None)
        if now is None or now > 1:
            found.append(f"micro_batch: {max(1, now // 2)}" if now else "a micro_batch")
    if "lora_rank" in section:  # a training stage
        if not engine.get("activation_checkpointing"):
            found.append("engine.activation_checkpointing: true")
        if ranks > 1 and engine.get("zero_stage", 2) < 3:
            found.append("engine.zero_stage: 3")
        if ranks > 1 and on_gpu and engine.get("offload", "none") == "none":
            found.append("engine.offload: optimizer")
        if not section["lora_rank"] and section.get("base_model") != "scratch":
            found.append(f"lora_rank: {LORA_RANK}")
    return found[:4]
