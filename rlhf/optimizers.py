"""AdamW, and its groups of weights by learning rate."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rlhf.engine_settings import EngineSettings

BETAS = (0.9, 0.95)
EPSILON = 1e-5
"""Adam's epsilon. The usual 1e-8 makes the first updates of a policy several times larger."""


def make_optimizer(
    groups: list[dict[str, Any]], settings: EngineSettings, *, learning_rate: float, weight_decay: float
) -> Any:
    """AdamW over groups of weights, with its state in fp32 or, where that is asked for, in 8 bits.

    Args:
        groups: as torch's optimizers take them.
        settings: of the engine, which `model_settings.refuse_unsupported` has let pass.
        learning_rate: peak rate; the engine sets the rate of every step.
        weight_decay: decoupled decay.
    """
    if settings.optimizer == "adamw_8bit":
        eight_bit = importlib.import_module("bitsandbytes.optim").AdamW8bit
        return eight_bit(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, weight_decay=weight_decay, fused=True)


def parameter_groups(
    model: nn.Module, learning_rate: float, rates: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Trainable parameters by peak rate.

    Args:
        model: the module.
        learning_rate: rate of all that `rates` does not name.
        rates: rates by the beginnings of names.

    Returns:
        Groups as torch's optimizers take them, none empty, and their peak rates.
    """
    by_key: dict[str, list[nn.Parameter]] = {"": [], **{key: [] for key in rates}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            by_key[next((key for key in rates if name.startswith(key)), "")].append(parameter)
    used = [key for key, parameters in by_key.items() if parameters]
    return [{"params": by_key[key]} for key in used], [rates[key] if key else learning_rate for key in used]
