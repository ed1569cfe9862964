"""Weights in the layout that the matrix library computes in, for as long as they do not change.

oneDNN rearranges the weight of a linear layer before each product. While a response is sampled the weights stay as
they are and the other factor has few rows, so that this takes up to a third of the time: it is done once instead. The
products are the same to the last bit (but for a single row, which oneDNN multiplies in another order).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf import matmul


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers that oneDNN computes use a rearranged copy of their weights; no gradient flows.

    Costs the memory of these weights a second time. Does nothing for layers of the native library, or under autocast.

    Args:
        model: whose weights do not change inside.
    """
    kinds = tuple(matmul.REPLACED.values())
    usable = not torch.is_autocast_enabled("cpu")
    layers = [module for module in model.modules() if usable and type(module) in kinds and _on_cpu(module)]
    try:
        for layer in layers:
            # An attribute of the instance comes before the method of its class.
            layer.forward = partial(_multiply, *_rearranged(layer))
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _on_cpu(layer: nn.Module) -> bool:
    return all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in layer.parameters())


@torch.no_grad()
def _rearranged(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    weight = layer.get_parameter("weight").detach()
    weight = weight.t().contiguous() if isinstance(layer, Conv1D) else weight
    bias = dict(layer.named_parameters(recurse=False)).get("bias")
    return torch.ops.mkldnn._reorder_linear_weight(weight), None if bias is None else bias.detach()


def _multiply(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return found
