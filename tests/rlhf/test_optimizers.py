import sys
import types

import pytest
import torch
from torch import nn

from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.optimizers import BETAS, EPSILON, make_optimizer, parameter_groups


def model():
    network = nn.Sequential()
    network.add_module("body", nn.Linear(2, 2))
    network.add_module("head", nn.Linear(2, 1))
    return network


def test_weights_go_to_the_group_of_their_name_and_frozen_ones_to_none():
    network = model()
    network.body.bias.requires_grad_(False)
    groups, peaks = parameter_groups(network, 0.1, {"head": 0.3, "other": 0.5})
    assert peaks == [0.1, 0.3]
    assert [len(group["params"]) for group in groups] == [1, 2]
    assert groups[0]["params"][0] is network.body.weight


def test_adamw_has_our_constants():
    optimizer = make_optimizer(
        [{"params": [nn.Parameter(torch.ones(2))]}], DEFAULTS, learning_rate=0.1, weight_decay=0.2
    )
    assert isinstance(optimizer, torch.optim.AdamW)
    chosen = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    assert chosen == {"lr": 0.1, "betas": BETAS, "eps": EPSILON, "weight_decay": 0.2}


def test_eight_bits_are_asked_of_bitsandbytes(monkeypatch):
    # The package needs a GPU; here only that it is asked, and for what.
    class AdamW8bit(torch.optim.AdamW):
        pass

    package = types.ModuleType("bitsandbytes")
    package.optim = types.ModuleType("bitsandbytes.optim")
    package.optim.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", package.optim)
    groups = [{"params": [nn.Parameter(torch.ones(2))]}]
    settings = EngineSettings(optimizer="adamw_8bit")
    assert isinstance(make_optimizer(groups, settings, learning_rate=0.1, weight_decay=0.0), AdamW8bit)


@pytest.mark.parametrize("rates", [{}, {"body": 1.0, "head": 2.0}])
def test_no_group_is_empty(rates):
    groups, peaks = parameter_groups(model(), 0.1, rates)
    assert len(groups) == len(peaks) == max(1, len(rates))
    assert all(group["params"] for group in groups)
