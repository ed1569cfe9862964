"""Pieces of an engine without ZeRO, as DeepSpeed has at stage 0; the others are in `test_deepspeed_engine`."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf.engine import prepare
from rlhf.split_state import read_pieces, write_pieces


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def unsplit(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1, fused=True)
    return SimpleNamespace(zero_optimization_stage=lambda: 0, module=model, optimizer=optimizer)


def learn(engine, steps):
    for _ in range(steps):
        engine.module(torch.ones(4, 3)).square().sum().backward()
        engine.optimizer.step()
        engine.optimizer.zero_grad()


def test_an_engine_goes_on_from_the_pieces_of_another_to_the_same_bits():
    straight, stopped, other = unsplit(), unsplit(), unsplit(seed=1)
    other.module[0].bias.data.copy_(straight.module[0].bias.data)
    learn(straight, 5)
    learn(stopped, 2)
    pieces = read_pieces(stopped)
    assert set(pieces) == {"0.weight", "1.weight", "1.bias"}
    assert set(pieces["0.weight"]["values"]) == {"weight", "exp_avg", "exp_avg_sq"}
    assert pieces["0.weight"]["step"] == 2
    write_pieces(other, {"pieces": pieces})
    learn(other, 3)
    for one, two in zip(straight.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(one, two)


def test_pieces_before_the_first_step_have_no_moments():
    fresh, other = unsplit(), unsplit(seed=1)
    write_pieces(other, {"pieces": read_pieces(fresh)})
    assert torch.equal(other.module[0].weight, fresh.module[0].weight)
    assert not other.optimizer.state
    assert set(read_pieces(fresh)["1.bias"]["values"]) == {"weight"}


def test_they_are_what_the_plain_engine_writes():
    ours = unsplit()
    plain = prepare(unsplit().module, learning_rate=0.1, schedule=lambda _: 1.0, max_grad_norm=0.0, precision="float32")
    plain.load_state_dict({"pieces": read_pieces(ours), "counters": [3, 1, 0]})
    found = plain.state_dict()
    assert found["counters"] == [3, 1, 0]
    assert {name: piece["shape"] for name, piece in found["pieces"].items()} == {
        "0.weight": [2, 3], "1.weight": [1, 2], "1.bias": [1]
    }  # fmt: skip
