"""The setting that params.yaml asks for, stage by stage."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.config import load_section, read_params
from rlhf.engine_settings import EngineSettings
from rlhf.errors import BadInput
from rlhf.sizing.model_shape import ModelShape, read_shape
from rlhf.sizing.published import shape_of_name
from rlhf.sizing.setting import STAGES

TRAINED = ("sft", "reward", "judge", "ppo", "dpo")
"""Stages that train, in their order."""
NODES = re.compile(r"--nnodes[= ](\d+)|--num_nodes[= ](\d+)")
RANKS = re.compile(r"--nproc[-_]per[-_]node[= ](\d+)|--num_gpus[= ](\d+)")


def read_project(root: Path) -> Mapping[str, Any]:
    """The sections of a project's params.yaml.

    Raises:
        BadInput: it is missing or broken.
    """
    return read_params(root / "params.yaml")


def section_of(method: str) -> str:
    """The section that a method is read from."""
    return "judge" if method == "judge" else STAGES[method]


def asked_for(params: Mapping[str, Any], method: str) -> dict[str, Any]:
    """What a method's section says, as fields of `Setting`.

    Args:
        params: the whole file.
        method: a key of `setting.STAGES`.

    Raises:
        BadInput: the section or a key that is needed is missing, or its engine is not understood.
    """
    name = section_of(method)
    section = params.get(name)
    if not isinstance(section, Mapping):
        raise BadInput(f"params.yaml: there is no section {name}, which `ratchet size {method}` reads")
    try:
        found = {**_engine(params, name), **_launch(section), **_READERS[STAGES[method]](section)}
    except KeyError as error:
        raise BadInput(f"params.yaml: missing key {name}.{error.args[0]}; see profiles/default.yaml") from error
    found["precision"] = "float32" if section.get("precision") == "float32" else "bfloat16"
    found["lora_rank"] = section.get("lora_rank", 0)
    share = -(-found["batch"] // found["gpus"])
    found["micro_batch"] = min(share, section.get("micro_batch") or share)
    return found


def shape_in(params: Mapping[str, Any], root: Path) -> ModelShape:
    """The shape of the model that `sft` starts from, and so of all that come after it.

    Args:
        params: the whole file.
        root: of the project.

    Raises:
        BadInput: its config is nowhere on this machine, and its name says no size that is known here.
    """
    sft = params.get("sft", {})
    name = str(sft.get("base_model", "scratch"))
    if name == "scratch":
        heads, hidden = sft["heads"], sft["hidden"]
        return ModelShape(
            name="scratch", hidden=hidden, layers=sft["layers"], heads=heads, kv_heads=heads,
            head_width=hidden // heads, intermediate=sft["intermediate"], vocabulary=sft["vocab_size"], tied=True,
            source="params.yaml",
        )  # fmt: skip
    return shape_by_name(name, revision=sft.get("revision"), base=root / "data/base")


def shape_by_name(name: str, *, revision: str | None = None, base: Path | None = None) -> ModelShape:
    """The shape of a size, a folder, a file, a base model or a hub id; the network is never asked.

    Args:
        name: such as 33B, PATH, or owner/name.
        revision: commit or tag of a hub id.
        base: folder of local base models.

    Raises:
        BadInput: nothing of that name is here.
    """
    places = [Path(name).expanduser(), *([] if base is None else [base / name.rpartition("/")[2]])]
    for place in places:
        if (place / "config.json").is_file() or place.suffix == ".json":
            return read_shape(place)
    cached = _cached(name, revision)
    if cached is not None:
        return read_shape(cached)
    known = shape_of_name(name)
    if known is None:
        raise BadInput(
            f"{name}: no model folder, no config.json of it in this machine's Hugging Face cache, and no size that is "
            "known here; the network is not asked, so give a size such as 7B, or a folder with a config.json"
        )
    return known


def _cached(name: str, revision: str | None) -> Path | None:
    """The config of a hub id in the cache."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _engine(params: Mapping[str, Any], stage: str) -> dict[str, Any]:
    section = {"engine": params[stage].get("engine") or {}}
    engine = load_section(section, "engine", EngineSettings)
    return {name: getattr(engine, name) for name in ("zero_stage", "offload", "activation_checkpointing", "optimizer")}


def _launch(section: Mapping[str, Any]) -> dict[str, Any]:
    """GPUs of a launch line; what it leaves to the machine counts as one."""
    line = str(section.get("launch", "python"))
    each, nodes = (
        next((int(value) for value in (match.groups() if match else ()) if value), 1)
        for match in (RANKS.search(line), NODES.search(line))
    )
    return {"gpus": each * nodes, "gpus_per_node": each}


def _offline(section: Mapping[str, Any]) -> dict[str, Any]:
    """Half of the longest row counts as response."""
    longest = section["max_tokens"]
    return {"batch": section["batch_size"], "prompt_tokens": longest // 2, "response_tokens": -(-longest // 2)}


def _dpo(section: Mapping[str, Any]) -> dict[str, Any]:
    return _offline(section) | {"sequences": 1.0 if section["objective"] == "kto" else 2.0}


def _reward(section: Mapping[str, Any]) -> dict[str, Any]:
    swapped = section["swap_share"] if section["swap_weight"] > 0 else 0.0
    return _offline(section) | {"sequences": 2.0 + swapped, "proposer": True}


def _ppo(section: Mapping[str, Any]) -> dict[str, Any]:
    valued = section["advantage"] == "gae" or section["baseline"] == "value"
    return {
        "prompt_tokens": section["max_prompt_tokens"], "response_tokens": section["max_new_tokens"],
        "batch": section["minibatch"] or section["rollouts"], "rollouts": section["rollouts"],
        "epochs": section["epochs"], "value_model": section["value_model"] if valued else "none",
        "value_lora_rank": section.get("value_lora_rank", 0), "reference": section["reference"],
        "reward_models": int("reward_model" in section["rewards"]),
    }  # fmt: skip


_READERS = {"sft": _offline, "reward": _reward, "dpo": _dpo, "ppo": _ppo}
