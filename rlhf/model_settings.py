"""Settings of a model that change speed and memory and not, but for rounding, what it computes."""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf.engine_settings import EngineSettings
from rlhf.errors import BadInput


def refuse_unsupported(settings: EngineSettings, *, device: torch.device, ranks: int) -> None:
    """Refuse settings that this machine, or this number of ranks, has no place for.

    Args:
        settings: of the engine.
        device: of this process.
        ranks: processes of the stage.

    Raises:
        BadInput: naming the setting and what to use instead.
    """
    on_gpu = device.type == "cuda"
    if settings.optimizer == "adamw_8bit":
        if not on_gpu or not _installed("bitsandbytes"):
            lack = "the package bitsandbytes is not installed" if on_gpu else "there is no GPU"
            raise BadInput(f"engine.optimizer is adamw_8bit, but {lack}; use adamw, or install it with pip")
        if ranks > 1:
            raise BadInput(
                f"engine.optimizer is adamw_8bit on {ranks} ranks, wanted adamw, whose state ZeRO splits over the ranks"
            )
    if settings.attention == "flash_attention_2" and not (on_gpu and _installed("flash_attn")):
        lack = "the package flash-attn is not installed" if on_gpu else "there is no GPU"
        raise BadInput(f"engine.attention is flash_attention_2, but {lack}; use auto, which is torch's fused attention")
    if settings.compile and not on_gpu:
        raise BadInput("engine.compile is true, but there is no GPU; use false, since on a CPU it gains nothing")
    if settings.compile and shutil.which("cc") is None and shutil.which("gcc") is None:
        raise BadInput("engine.compile is true, but there is no C compiler; install gcc, or use false")
    if settings.compile and ranks > 1 and settings.zero_stage == 3:
        raise BadInput("engine.compile is true with zero_stage 3, wanted a stage that leaves weights whole, at most 2")


def apply_settings(model: nn.Module, settings: EngineSettings) -> None:
    """Set checkpointing, attention and compilation on a model that is about to be trained.

    Args:
        model: changed in place.
        settings: of the engine.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and settings.attention != "auto":
            part.set_attn_implementation(settings.attention)
    if settings.activation_checkpointing:
        _checkpoint(model)
    if settings.compile:
        for block in _blocks(model):
            # Lengths differ from batch to batch: one dynamic graph instead of one for each.
            block.compile(dynamic=True)


def _checkpoint(model: nn.Module) -> None:
    """Compute each block again in the backward pass.

    Transformers does so in training mode alone, which would also switch dropout on, so only the blocks themselves are
    put into it and not what is inside them.

    Raises:
        BadInput: the model's code cannot.
    """
    trunks = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    try:
        for trunk in trunks[:1]:
            # Transformers 5 has renamed it on its way.
            old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"
            getattr(trunk, new if hasattr(trunk, new) else old)({"use_reentrant": False})
    except ValueError as error:
        raise BadInput(f"engine.activation_checkpointing is true: {error}; set it to false") from error
    if not _blocks(model):
        raise BadInput(
            f"engine.activation_checkpointing is true, but {type(model).__name__} has no blocks to compute again; set "
            "it to false"
        )
    for block in _blocks(model):
        block.training = True


@contextlib.contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Blocks keep what they compute inside this context: a block that is computed again fills no key/value cache."""
    asleep = [block for block in _blocks(model) if block.training]
    for block in asleep:
        block.training = False
    try:
        yield
    finally:
        for block in asleep:
            block.training = True


def _blocks(model: nn.Module) -> list[Any]:
    return [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
