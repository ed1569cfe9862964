import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rlhf.adapters import Lora, adapter_parameters, add_adapter
from rlhf.errors import BadInput
from rlhf.sizing.model_shape import ModelShape, read_shape, shape_of_config, widened

WIDTHS = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 100}
INNER = {"intermediate_size": 160}


def counted(config: Any) -> tuple[ModelShape, Any]:
    """The shape that a config describes, and a model of it without memory for its weights."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return shape_of_config(json.loads(config.to_json_string(use_diff=False)), name="x", where="x"), model


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(**WIDTHS, **INNER, num_key_value_heads=2, tie_word_embeddings=True),
        transformers.LlamaConfig(**WIDTHS, **INNER, tie_word_embeddings=False),
        transformers.Qwen2Config(**WIDTHS, **INNER, num_key_value_heads=2),
        transformers.GemmaConfig(**WIDTHS, **INNER, num_key_value_heads=1, head_dim=32),
        transformers.Gemma2Config(**WIDTHS, **INNER, num_key_value_heads=2, head_dim=32),
        transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=100, n_positions=50),
        transformers.GPTNeoXConfig(**WIDTHS, **INNER),
    ],
    ids=lambda config: config.model_type,
)
def test_weights_are_counted_as_transformers_builds_them_but_for_biases(config: Any) -> None:
    shape, model = counted(config)
    # LayerNorm has a bias too, which the count of vectors includes.
    kept = [weight.numel() for name, weight in model.named_parameters()
            if not name.endswith("bias") or "norm" in name or ".ln_" in name]  # fmt: skip
    assert shape.parameters == sum(kept)


def test_an_adapter_is_counted_as_it_is_built() -> None:
    config = transformers.LlamaConfig(**WIDTHS, **INNER, num_key_value_heads=2)
    shape, _ = counted(config)
    model = add_adapter(transformers.LlamaForCausalLM(config), Lora(4, 8.0), seed=1)
    assert shape.adapter(4) == adapter_parameters(model)


def test_a_folder_and_its_config_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(transformers.LlamaConfig(**WIDTHS, **INNER).to_json_string())
    from_folder = read_shape(tmp_path)
    assert from_folder == read_shape(tmp_path / "config.json")
    assert (from_folder.hidden, from_folder.layers, from_folder.intermediate) == (64, 3, 160)


def test_what_is_no_dense_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BadInput, match="JSON"):
        read_shape(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="hidden_size"):
        read_shape(tmp_path)
    with pytest.raises(BadInput, match="mixture of experts"):
        shape_of_config({"model_type": "mixtral", "num_local_experts": 8}, name="x", where="x")


def test_a_widened_model_has_about_the_wanted_weights() -> None:
    shape = shape_of_config({**WIDTHS, **INNER, "hidden_size": 1024, "num_attention_heads": 16}, name="x", where="x")
    grown = widened(shape, 3 * shape.parameters, name="y")
    assert grown.parameters == pytest.approx(3 * shape.parameters, rel=0.05)
    assert dataclasses.asdict(grown)["heads"] == shape.heads
