"""What a model folder says of itself, held against its weights before anything of that size is built or read."""

import json
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput

LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers")
"""What configurations call their number of blocks."""
INDEX = "model.safetensors.index.json"


def check_claims(folder: Path) -> None:
    """Refuse a folder whose index names other files than its own, or whose config has more blocks than it has weights.

    A config with a million blocks would be built for hours before anybody missed the weights, and an index may name
    any file of the machine, in formats that run code when they are read.

    Args:
        folder: a model folder with safetensors.

    Raises:
        BadInput: naming the file and what it says.
    """
    if (folder / INDEX).is_file():
        _check_index(folder)
    tensors = sum(_count(file) for file in sorted(folder.glob("*.safetensors")))
    config = _read(folder / "config.json")
    for name in LAYERS:
        layers = config.get(name)
        if isinstance(layers, (int, float)) and not 1 <= layers <= tensors:
            raise BadInput(
                f"{folder / 'config.json'}: {name} is {layers:g}, but the weights are {tensors} tensors; give the "
                "config that belongs to them"
            )


def _check_index(folder: Path) -> None:
    named = _read(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise BadInput(f"{folder / INDEX}: has no weight_map of tensors and files; copy the whole model again")
    for file in sorted({str(name) for name in named.values()}):
        if Path(file).name != file or not file.endswith(".safetensors") or not (folder / file).is_file():
            raise BadInput(
                f"{folder / INDEX}: names {file!r}, wanted safetensors files beside it; copy the whole model again"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({type(error).__name__}); copy the model again") from error
    if not isinstance(document, dict):
        raise BadInput(f"{path}: is no JSON object; copy the model again")
    return document


def _count(file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stream:
            return len(stream.keys())
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{file}: is not a whole safetensors file ({error}); copy it again") from error
