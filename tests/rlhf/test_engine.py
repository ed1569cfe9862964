import pytest
import torch
from torch import nn

from rlhf.engine import MAX_BAD_STEPS, PlainEngine, prepare, refuse_divergence
from rlhf.errors import StageFailed
from rlhf.optimizers import BETAS, EPSILON

SETTINGS = {"learning_rate": 0.1, "schedule": lambda step: 1.0, "max_grad_norm": 1.0, "precision": "float32"}


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def model():
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def loss_of(engine, rows=slice(None), total=4):
    data = torch.arange(12.0).reshape(4, 3)[rows]
    return (engine(data) ** 2).sum() / total


def test_one_process_gets_the_plain_engine():
    assert isinstance(prepare(model(), **SETTINGS), PlainEngine)


def test_the_first_update_is_adams():
    # First step: m / (1 - b1) = g and v / (1 - b2) = g^2, so w moves by lr * g / (|g| + eps), about lr * sign(g).
    engine = prepare(nn.Linear(1, 1, bias=False), **{**SETTINGS, "max_grad_norm": 0.0})
    engine.module.weight.data.fill_(2.0)
    engine.backward((3.0 * engine.module.weight).sum())
    result = engine.step()
    assert float(engine.module.weight.detach()) == pytest.approx(2.0 - 0.1 * 3.0 / (3.0 + EPSILON))
    assert result == {"grad_norm": pytest.approx(3.0), "lr": 0.1, "skipped": 0.0}


def test_clipping_scales_the_gradient_to_the_limit():
    # Adam hides scale at the first step, so look at its first moment: (1 - b1) * g with g = 3 clipped to 1.
    engine = prepare(nn.Linear(1, 1, bias=False), **SETTINGS)
    engine.backward((3.0 * engine.module.weight).sum())
    assert engine.step()["grad_norm"] == pytest.approx(3.0)
    moment = engine.optimizer.state[engine.module.weight]["exp_avg"]
    assert float(moment) == pytest.approx((1 - BETAS[0]) * 1.0, rel=1e-5)


def test_micro_batches_add_up_to_the_batch():
    whole, parts = prepare(model(), **SETTINGS), prepare(model(), **SETTINGS)
    whole.backward(loss_of(whole))
    parts.backward(loss_of(parts, slice(0, 1)), final=False)
    parts.backward(loss_of(parts, slice(1, 4)))
    assert whole.step()["grad_norm"] == pytest.approx(parts.step()["grad_norm"], rel=1e-6)
    torch.testing.assert_close(whole.module.weight, parts.module.weight)


def test_the_schedule_sets_the_rate_of_each_step():
    engine = prepare(model(), **{**SETTINGS, "schedule": lambda step: 1.0 / (step + 1)})
    rates = []
    for _ in range(3):
        engine.backward(loss_of(engine))
        rates.append(engine.step()["lr"])
    assert rates == pytest.approx([0.1, 0.05, 0.1 / 3])


def test_a_bad_gradient_changes_nothing_and_is_counted():
    engine = prepare(model(), **SETTINGS)
    engine.backward(loss_of(engine))
    engine.step()
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    engine.backward(loss_of(engine) * float("nan"))
    assert engine.step()["skipped"] == 1.0
    assert all(torch.equal(before[name], value) for name, value in engine.module.state_dict().items())
    engine.backward(loss_of(engine))
    engine.step()
    assert not torch.equal(before["weight"], engine.module.weight)
    assert (engine.skipped, engine.bad_in_a_row) == (1, 0)


def test_bad_gradients_in_a_row_stop_the_stage():
    engine = prepare(model(), **SETTINGS)
    for _ in range(MAX_BAD_STEPS - 1):
        engine.backward(loss_of(engine) * float("inf"))
        engine.step()
    engine.backward(loss_of(engine) * float("inf"))
    with pytest.raises(StageFailed, match="try a lower learning_rate"):
        engine.step()


def test_single_bad_steps_are_no_reason_to_stop(caplog):
    refuse_divergence(MAX_BAD_STEPS - 1, 7)
    assert (
        f"step 7: the loss or its gradient is not finite; update skipped ({MAX_BAD_STEPS - 1} in a row)" in caplog.text
    )


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one():
    def run(engine, steps):
        for _ in range(steps):
            engine.backward(loss_of(engine))
            engine.step()
        return engine

    straight = run(prepare(model(), **SETTINGS), 6)
    state = run(prepare(model(), **SETTINGS), 3).state_dict()
    resumed = prepare(model(), **SETTINGS)
    resumed.load_state_dict(state)
    run(resumed, 3)
    assert torch.equal(straight.module.weight, resumed.module.weight)
    assert resumed.steps == 6


def test_frozen_weights_stay():
    network = model()
    network.bias.requires_grad_(False)
    engine = prepare(network, **SETTINGS)
    before = network.bias.clone()
    engine.backward(loss_of(engine))
    engine.step()
    assert torch.equal(network.bias, before)


def test_weights_are_whole_on_one_process():
    engine = prepare(model(), **SETTINGS)
    with engine.gathered() as module:
        assert module is engine.module


def test_bfloat16_computes_in_bf16_and_keeps_fp32_weights():
    engine = prepare(model(), **{**SETTINGS, "precision": "bfloat16"})
    assert engine(torch.ones(1, 3)).dtype == torch.bfloat16
    assert engine.module.weight.dtype == torch.float32
