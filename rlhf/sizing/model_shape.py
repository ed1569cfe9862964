"""The numbers of a transformer that its memory and its arithmetic follow from, and how many weights it has."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput

EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
SANDWICHED = ("gemma2", "gemma3", "gemma3_text")
"""Families with a norm before and after each of a block's two parts."""
UNGATED = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "starcoder2", "gpt_bigcode")
"""Families whose feed-forward layer is two matrices; all others have a third that gates."""
LEARNED_POSITIONS = ("gpt2", "gpt_neo", "opt", "gpt_bigcode")
TIED_BY_DEFAULT = ("gpt2", "gpt_neo", "opt", "bloom", "gemma", "gemma2", "gemma3", "gemma3_text", "gpt_bigcode")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A decoder-only language model."""

    name: str
    """What it is called in messages."""
    hidden: int
    """Width of the residual stream."""
    layers: int
    heads: int
    kv_heads: int
    """Heads that keys and values have; fewer than `heads` with grouped queries."""
    head_width: int
    intermediate: int
    """Width of the feed-forward layer."""
    vocabulary: int
    gated: bool = True
    """Whether the feed-forward layer has three matrices, one of which gates."""
    tied: bool = False
    """Whether the embedding is the output matrix too."""
    norms: int = 2
    """In a block."""
    root_norm: bool = True
    """RMSNorm in many small operations, as against torch's fused LayerNorm."""
    positions: int = 0
    """Learned positions; 0 for rotary ones."""
    activation: str = "silu"
    source: str = ""
    """Where the numbers come from."""

    @property
    def query_width(self) -> int:
        """Queries of all heads together."""
        return self.heads * self.head_width

    @property
    def kv_width(self) -> int:
        """Keys (or values) of all heads together."""
        return self.kv_heads * self.head_width

    @property
    def block(self) -> int:
        """Weights of one block's matrices."""
        attention = 2 * self.hidden * self.query_width + 2 * self.hidden * self.kv_width
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def head(self) -> int:
        """Weights of the output matrix."""
        return self.vocabulary * self.hidden

    @property
    def matrices(self) -> int:
        """Weights that a forward pass multiplies by, without the output matrix."""
        return self.layers * self.block

    @property
    def trunk(self) -> int:
        """Weights without an output matrix of its own: what a reward or value model has, but for its head's few."""
        vectors = (self.layers * self.norms + 1) * self.hidden * (1 if self.root_norm else 2)
        return self.matrices + self.head + vectors + self.positions * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, tied ones once, without biases."""
        return self.trunk + (0 if self.tied else self.head)

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA adapter beside every matrix of the blocks: rank * (width in + width out) each."""
        widths = 2 * (self.hidden + self.query_width) + 2 * (self.hidden + self.kv_width)
        widths += (3 if self.gated else 2) * (self.hidden + self.intermediate)
        return self.layers * rank * widths


def read_shape(path: Path) -> ModelShape:
    """The shape of a model folder or of its config.json.

    Raises:
        BadInput: there is none, or it is not one of a decoder-only language model.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{file}: no such file; wanted a model folder, or a size such as 7B") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{file}: cannot be read as JSON ({error}); wanted the config.json of a model") from error
    if not isinstance(config, dict):
        raise BadInput(f"{file}: holds a {type(config).__name__}, wanted the config.json of a model")
    return shape_of_config(config, name=path.name if path.is_dir() else path.parent.name, where=str(file))


def shape_of_config(config: Mapping[str, Any], *, name: str, where: str) -> ModelShape:
    """The shape that a Hugging Face config describes.

    Args:
        config: its keys.
        name: of the model.
        where: the config comes from, for messages.

    Raises:
        BadInput: a key is missing, or the model is a mixture of experts, whose memory follows another count.
    """
    config = {**config, **config.get("text_config", {})}
    kind = str(config.get("model_type", "llama"))
    if any((config.get(key) or 0) > 1 for key in EXPERT_KEYS):
        raise BadInput(f"{where}: a mixture of experts ({kind}); `ratchet size` knows dense models only")

    def find(*keys: str) -> int:
        for key in keys:
            if isinstance(config.get(key), int):
                return int(config[key])
        raise BadInput(f"{where}: has none of the keys {', '.join(keys)}; wanted a decoder-only language model")

    hidden, heads = find("hidden_size", "n_embd", "d_model"), find("num_attention_heads", "n_head", "num_heads")
    activation = str(config.get("hidden_act") or config.get("hidden_activation") or config.get("activation_function"))
    positions = find("max_position_embeddings", "n_positions") if kind in LEARNED_POSITIONS else 0
    optional = {key: config[key] for key in ("num_key_value_heads", "head_dim") if isinstance(config.get(key), int)}
    inner = [config[key] for key in ("intermediate_size", "n_inner", "ffn_dim") if isinstance(config.get(key), int)]
    return ModelShape(
        name=name, hidden=hidden, layers=find("num_hidden_layers", "n_layer", "num_layers"), heads=heads,
        kv_heads=optional.get("num_key_value_heads", heads), head_width=optional.get("head_dim", hidden // heads),
        intermediate=inner[0] if inner else 4 * hidden, vocabulary=find("vocab_size"), gated=kind not in UNGATED,
        tied=bool(config.get("tie_word_embeddings", kind in TIED_BY_DEFAULT)), norms=4 if kind in SANDWICHED else 2,
        root_norm=kind not in UNGATED, positions=positions, activation=activation, source=where,
    )  # fmt: skip


def widened(shape: ModelShape, parameters: float, *, name: str) -> ModelShape:
    """A model of another size with the proportions of a known one; the vocabulary stays.

    Args:
        shape: the known one.
        parameters: wanted number of weights, about.
        name: of the new one.
    """
    low, high = 0.01, 100.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _scaled(shape, middle).parameters < parameters else (low, middle)
    found = _scaled(shape, low)
    return dataclasses.replace(
        found, name=name, source=f"no published shape of {name} is known here; that of {shape.name}, scaled"
    )


def _scaled(shape: ModelShape, factor: float) -> ModelShape:
    """All widths times a factor, blocks times its square root, as published families grow."""
    head_width = max(2, round(shape.head_width * factor))
    return dataclasses.replace(
        shape, head_width=head_width, hidden=max(2, round(shape.hidden * factor)),
        intermediate=max(2, round(shape.intermediate * factor)), layers=max(1, round(shape.layers * factor**0.5)),
    )  # fmt: skip
