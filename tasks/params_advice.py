"""Which settings of a project lie outside what is recommended for a model of its size."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.advice import Advice, warnings
from rlhf.config import read_params
from rlhf.errors import BadInput

SCRATCH = "scratch"
BASE_MODELS = Path("data/base")
NAMED_SIZE = re.compile(r"(?<![\w.])(?:[a-z]*)(\d+(?:\.\d+)?)([kmb])(?![a-z0-9])", re.IGNORECASE)
"""The size in the name of a model: 7B, 0.5B, 160m, stories260k."""
LONGEST_HEADER = 100_000_000
"""Bytes; that of the format itself."""
UNITS = {"k": 1_000, "m": 1_000_000, "b": 1_000_000_000}


def advise(root: Path) -> list[Advice]:
    """Compare a project's settings with what the literature recommends.

    Args:
        root: the project.

    Raises:
        BadInput: `params.yaml` cannot be read.
    """
    params = read_params(root / "params.yaml")
    return warnings(params, model_size(root, params))


def model_size(root: Path, params: Mapping[str, Any]) -> int | None:
    """Find how many parameters the policy has, from settings and files alone, so before anything has run.

    Args:
        root: the project, in whose data/base local models lie.
        params: the whole parameter file.

    Returns:
        That of a model from scratch by its widths, of a local one by its weights, of any other by its name; None where
        the name does not say.
    """
    sft = params.get("sft")
    if not isinstance(sft, Mapping) or "base_model" not in sft:
        return None
    name = str(sft["base_model"])
    if name == SCRATCH:
        return _scratch_size(sft)
    counted = sum(_tensor_numbers(file) for file in sorted((root / BASE_MODELS / name).glob("*.safetensors")))
    if counted:
        return counted
    match = NAMED_SIZE.search(name)
    return round(float(match[1]) * UNITS[match[2].lower()]) if match else None


def _scratch_size(sft: Mapping[str, Any]) -> int:
    """Count a Llama with tied embeddings: four square matrices, three of the feed-forward layer, two norms a block."""
    hidden, block = sft["hidden"], 4 * sft["hidden"] ** 2 + 3 * sft["hidden"] * sft["intermediate"] + 2 * sft["hidden"]
    return int(sft["vocab_size"] * hidden + sft["layers"] * block + hidden)


def _tensor_numbers(file: Path) -> int:
    """Count the numbers of a safetensors file by its header: eight bytes of length, then JSON with the shapes."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(min(int.from_bytes(stream.read(8), "little"), LONGEST_HEADER)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cure = "bring the model in again with `ratchet ingest`"
        raise BadInput(f"{file}: is not a whole safetensors file; {cure}") from error
