import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf.errors import BadInput
from rlhf.model_claims import INDEX, check_claims


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 2}')
    return tmp_path


def test_a_folder_whose_files_agree_is_fine(folder: Path) -> None:
    check_claims(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}))
    check_claims(folder)


@pytest.mark.parametrize("layers", [3, 1e9, 10**30, 0, -1])
def test_more_blocks_than_weights_are_not_built(folder: Path, layers: float) -> None:
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    with pytest.raises(BadInput, match=r"num_hidden_layers is .* the weights are 2 tensors"):
        check_claims(folder)


@pytest.mark.parametrize("named", ["/etc/passwd", "../model.safetensors", "gone.safetensors", "config.json", 3])
def test_an_index_names_nothing_but_weights_beside_it(folder: Path, named: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(BadInput, match="wanted safetensors files beside it"):
        check_claims(folder)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (INDEX, "[]", "is no JSON object"),
        (INDEX, '{"weight_map": []}', "has no weight_map"),
        ("config.json", "{", "cannot be read as JSON"),
        ("config.json", "[" * 100_000, "cannot be read as JSON"),
        ("model.safetensors", "x", "is not a whole safetensors file"),
    ],
)
def test_what_is_broken_is_named(folder: Path, file: str, text: str, said: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(BadInput, match=said):
        check_claims(folder)
