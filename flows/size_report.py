"""What `ratchet size` shows to people, from the document that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.output import duration, size, table

PARTS = ("weights", "frozen models", "gradients", "optimizer", "bf16 copies", "activations", "logits", "KV cache",
         "gather", "buffers", "reserve", "total")  # fmt: skip
SHOWN = ("gpus", "zero_stage", "offload", "activation_checkpointing", "micro_batch", "lora_rank", "value_model",
         "value_lora_rank", "reference")  # fmt: skip
ENGINE = {
    "weights": "weights held in bf16, with fp32 masters beside the optimizer's state",
    "frozen_split": "frozen models split over the GPUs by ZeRO-3",
    "whole_rollout": "sampling that fetches a block of weights at a time instead of the whole policy",
    "whole_load": "models split while they are loaded, instead of whole on every GPU first",
    "casts_kept": "bf16 copies of weights dropped block by block",
}
"""Fields of `rlhf.sizing.setting.Holds`: what an engine would have that this one has not."""
LORA = "LoRA trains an adapter alone, which is not the same result as training all weights"


def lines(document: Mapping[str, Any]) -> list[str]:
    """The answer for one method."""
    setting, memory = document["setting"], document["memory"]
    found = [
        f"{document['method']} of {document['model']} ({document['parameters'] / 1e9:.3g}B weights) on "
        f"{setting['gpus']} x {document['gpu']} {size(memory)}: {_verdict(document)}",
        f"shape: {document['shape_source']}",
        f"setting: {_setting(setting)}; {_lengths(setting)}",
        "",
        _moments(document["moments"]),
        "",
        f"host memory of one computer: {size(document['host_total'])} ("
        + ", ".join(f"{name} {size(value)}" for name, value in document["host"].items() if value)
        + ")",
        _time(document),
        "",
        *_advice(document),
    ]
    return found


def overview(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each of several methods."""
    rows = [
        (document["method"], document["model"], f"{document['setting']['gpus']} x {size(document['memory'])}",
         size(document["peak"]), document["peak_at"], document["fits"], size(document["host_total"]),
         duration(document["time"]["update"]))
        for document in documents
    ]  # fmt: skip
    head = ("stage", "model", "GPUs", "needs per GPU", "at", "fits", "host", "an update")
    first = documents[0]["method"]
    return [table(head, rows), f"next: `ratchet size {first}` shows the parts and the cheapest setting of one stage"]


def _verdict(document: Mapping[str, Any]) -> str:
    over = document["peak"] - document["memory"]
    if document["fits"]:
        return f"fits, {size(-over)} to spare"
    if over > 0:
        return f"does not fit, {size(over)} too much per GPU"
    return "does not fit the computer's memory"


def _moments(moments: Mapping[str, Mapping[str, float]]) -> str:
    """Parts down, moments across; what is less than a ten-thousandth is left out."""
    least = max(found["total"] for found in moments.values()) / 1e4
    rows = [
        (part, *(size(found.get(part, 0)) if found.get(part, 0) >= least else None for found in moments.values()))
        for part in PARTS
        if any(found.get(part, 0) >= least for found in moments.values())
    ]
    return table(("on each GPU", *moments), rows)


def _setting(setting: Mapping[str, Any]) -> str:
    said = [f"{setting['gpus']} GPUs" if setting["gpus"] > 1 else "1 GPU"]
    said += [f"ZeRO-{setting['zero_stage']}", f"offload {setting['offload']}"] if setting["gpus"] > 1 else []
    said.append("checkpointing" if setting["activation_checkpointing"] else "no checkpointing")
    said.append(f"LoRA of rank {setting['lora_rank']}" if setting["lora_rank"] else "all weights trained")
    if setting["value_model"] != "none":
        thin = setting["value_lora_rank"]
        said.append(f"value model {setting['value_model']}" + (f" with LoRA of rank {thin}" if thin else ""))
    if setting["reference"] != "none":
        said.append(f"reference {setting['reference']}")
    return ", ".join([*said, f"micro-batch {setting['micro_batch']}", setting["precision"]])


def _lengths(setting: Mapping[str, Any]) -> str:
    text = f"{setting['prompt_tokens']} + {setting['response_tokens']} tokens, batch {setting['batch']}"
    samples = setting["reward_models"] or setting["reference"] != "none"
    return text + (f", {setting['rollouts']} rollouts" if samples else "")


def _time(document: Mapping[str, Any]) -> str:
    time = document["time"]
    parts = ", ".join(f"{name} {duration(value)}" for name, value in time["parts"].items() if value >= 0.05)
    text = (
        f"time: {duration(time['update'])} for an update of {time['elements']} ({parts}); "
        f"{duration(time['per_1000'])} for 1,000; assumed: {document['assumed']['utilisation']:.0%} of the peak "
        f"operations of an {document['gpu']}, every row at full length"
    )
    return text + (f"; one pass over the examples: {duration(time['pass'])}" if "pass" in time else "")


def _advice(document: Mapping[str, Any]) -> list[str]:
    """The cheapest setting, or what would have to change."""
    best, found = document["cheapest"], list[str]()
    gpus = document["setting"]["gpus"]
    if document["cheapest_needs_more_gpus"] or best is None:
        found.append(f"no setting fits {gpus} GPUs of this size")
    if document["fits_if"]:
        lacking = document["fits_if"]
        found.append("it would fit them if the engine had:")
        found += [f"  - {ENGINE[name]}" for name in lacking["engine"]]
        found.append(f"  then: {_choice(document, lacking)}")
    elif best is None or document["cheapest_needs_more_gpus"]:
        found.append("nor would it with any way of holding weights that is known here")
    if best is not None:
        found.append(f"cheapest that fits: {_choice(document, best)}")
    elif document["fits_if"]:
        found.append("and no number of GPUs helps: something has to lie whole on each of them")
    return found


def _choice(document: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    setting = choice["setting"]
    changed = [name for name in SHOWN if setting[name] != document["setting"][name]]
    text = (
        f"{_setting(setting)}: {size(choice['peak'])} per GPU ({choice['peak_at']}), {size(choice['host_total'])} of "
        f"host memory, {duration(choice['seconds'])} an update"
    )
    if "lora_rank" in changed:
        text += f". {LORA}"
    return text + ("" if changed else " (as asked)")
