"""LoRA: a small trainable product of two thin matrices beside every linear layer of a frozen model.

    y = W x + (alpha / rank) B A x,    A random, B zero: at the start the adapted model is the base model

The adapter is put inside the model and not around it, so that the model stays of its own class: generation, the head
that runs at response positions only, and everything else works on it as before. With the adapter off the layers
compute W x alone, by the very operation of the base model, so the results are the base model's bit for bit; that is the
reference of a policy that is trained by LoRA, and no second model need be held.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3, https://arxiv.org/abs/2106.09685.
"""

import contextlib
import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf.errors import BadInput

NAME = "default"
FOLDER = "adapter"
"""Where the adapter alone lies, below the folder of the model that it has been added into."""


@dataclass(frozen=True, slots=True)
class Lora:
    """Size and strength of an adapter."""

    rank: int
    """Width of the two matrices, at least 1."""
    alpha: float
    """The product is multiplied by alpha / rank; above 0."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: rank is below 1 or alpha is not above 0.
        """
        if self.rank < 1 or not self.alpha > 0:
            raise ValueError(f"Lora: rank is {self.rank} and alpha {self.alpha}, wanted at least 1 and above 0")


@dataclass(frozen=True, slots=True)
class AdapterOff:
    """The base model under an adapted one, in place of a second model: a frozen reference that costs no memory."""

    model: PreTrainedModel
    """The adapted model."""


def add_adapter(model: PreTrainedModel, lora: Lora, *, seed: int) -> PreTrainedModel:
    """Put an adapter beside every linear layer of the blocks (not the head); only its weights stay trainable.

    A is drawn as `nn.Linear` draws its weights, uniform within +- 1 / sqrt(width), from a generator of its own, and B
    is 0. Without dropout, in fp32. Torch's global generator is left as it was.

    Args:
        model: a causal language model; changed in place.
        lora: size and strength.
        seed: of A.

    Returns:
        The same model.

    Raises:
        ValueError: the model has an adapter already.
        BadInput: the model has no linear layer to adapt (some mixtures of experts keep all weights in one tensor).
    """
    if has_adapter(model):
        raise ValueError("add_adapter: the model has an adapter already, wanted a plain one")
    import peft

    trunk = model.base_model
    inside = {id(module) for module in trunk.modules() if isinstance(module, (nn.Linear, Conv1D))}
    targets = [name for name, module in model.named_modules() if id(module) in inside]
    if not targets:
        raise BadInput(f"{type(model).__name__} has no linear layer that an adapter fits beside; set lora_rank: 0")
    with torch.random.fork_rng(devices=[]):
        settings = peft.LoraConfig(
            r=lora.rank, lora_alpha=cast(Any, lora.alpha), lora_dropout=0.0, target_modules=targets, bias="none",
            fan_in_fan_out=isinstance(model.get_submodule(targets[0]), Conv1D),
        )  # fmt: skip
        peft.inject_adapter_in_model(settings, model, adapter_name=NAME)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in _layers(model):
            thin = layer.lora_A[NAME].weight
            bound = 1 / math.sqrt(thin.shape[1])
            thin.copy_(torch.empty(thin.shape).uniform_(-bound, bound, generator=source))
    return model


def has_adapter(model: nn.Module) -> bool:
    """Whether `add_adapter` has been here."""
    return hasattr(model, "peft_config")


@contextlib.contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Compute as the base model, bit for bit, inside this context.

    Raises:
        ValueError: there is no adapter, or it has been added into the weights: W + B A - B A is not W to the last bit.
    """
    layers = _layers(model)
    if not layers or any(layer.merged for layer in layers):
        raise ValueError("adapter_off: the model has no adapter of its own beside the weights to switch off")
    # Switching also freezes the adapter's weights, and back on thaws them all, so what they were is kept.
    trainable = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, flag in trainable:
            weight.requires_grad_(flag)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with the adapter added into the weights, W + (alpha / rank) B A, to be saved as any other.

    Its log-probabilities are those of the adapted model but for rounding. The adapted model stays as it is, so that
    its base can still serve as the reference.

    Args:
        model: with an adapter or without one.

    Returns:
        A copy without adapter; the model itself when it has none.
    """
    if not has_adapter(model):
        return model
    plain = copy.deepcopy(model).requires_grad_(False)
    names = {id(module): name for name, module in plain.named_modules()}
    for layer in _layers(plain):
        layer.merge()
        plain.set_submodule(names[id(layer)], layer.get_base_layer())
    del plain.peft_config
    return plain


def adapter_parameters(model: nn.Module) -> int:
    """Number of weights in the adapter, 0 without one."""
    return sum(
        getattr(weight, "ds_numel", weight.numel()) for layer in _layers(model) for thin in (layer.lora_A, layer.lora_B)
        for weight in thin.parameters()
    )  # fmt: skip


def save_adapter(model: PreTrainedModel, folder: Path, *, also: str | None = None) -> None:
    """Write the adapter alone, as `peft.PeftModel.from_pretrained` reads it on top of the base model.

    Args:
        model: with an adapter; nothing is written for one without.
        folder: to write adapter_config.json and adapter_model.safetensors to.
        also: name of a layer that was trained whole beside it and goes with it (the head of a reward model).
    """
    if not has_adapter(model):
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**cast(Any, model.peft_config[NAME]).to_dict(), "modules_to_save": [also] if also else None}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    text = json.dumps(plain, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    marks = (f".lora_A.{NAME}.", f".lora_B.{NAME}.")
    weights = {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": weight.detach().cpu().contiguous()
        for name, weight in model.named_parameters()
        if any(mark in name for mark in marks) or (also and name.startswith(f"{also}."))
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _layers(model: nn.Module) -> list[Any]:
    """The adapted layers, in the order of the model."""
    if not has_adapter(model):
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]
