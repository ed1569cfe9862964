"""Rearranged weights: same products, and nothing of it stays behind."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf import matmul
from rlhf.packed_weights import packed


def layers():
    torch.manual_seed(0)
    return nn.ModuleList([nn.Linear(24, 40), nn.Linear(24, 8, bias=False), Conv1D(16, 24)])


@pytest.fixture
def onednn():
    matmul.choose("onednn")
    yield
    matmul.choose("native")


@pytest.mark.usefixtures("onednn")
@torch.no_grad()
def test_products_are_the_same_to_the_last_bit():
    model, states = matmul.adopt(layers()), torch.randn(5, 2, 24)
    before = [layer(states) for layer in model]
    with packed(model):
        inside = [layer(states) for layer in model]
        assert all("forward" in vars(layer) for layer in model)
    assert all(torch.equal(*pair) for pair in zip(before, inside, strict=True))
    assert not any("forward" in vars(layer) for layer in model)


@pytest.mark.usefixtures("onednn")
def test_weights_that_change_afterwards_are_seen_again():
    model, states = matmul.adopt(layers()), torch.randn(3, 24)
    with pytest.raises(RuntimeError, match="inside"), packed(model):
        raise RuntimeError("inside")
    with torch.no_grad():
        old = model[0](states)
        model[0].weight += 1
        assert not torch.allclose(model[0](states), old)


@torch.no_grad()
def test_native_layers_and_autocast_are_left_alone():
    model = layers()
    with packed(model):
        assert not any("forward" in vars(layer) for layer in model)
    matmul.choose("onednn")
    matmul.adopt(model)
    matmul.choose("native")
    with torch.autocast("cpu", torch.bfloat16), packed(model):
        assert not any("forward" in vars(layer) for layer in model)
