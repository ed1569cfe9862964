"""Adam's epsilon is 1e-5: with the usual 1e-8 the first steps of small gradients would be far larger."""

import pytest
import torch

from rlhf.engine import prepare


@pytest.mark.parametrize("gradient", [1e-5, 1e-6, 1.0])
def test_a_gradient_as_small_as_epsilon_takes_half_a_step(gradient: float) -> None:
    # The first step of Adam, with both moments corrected, is rate * g / (|g| + epsilon): for g = 1e-5 half the rate,
    # for 1e-6 an eleventh of it, for 1 all of it.
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    engine = prepare(model, learning_rate=0.1, schedule=lambda _: 1.0, max_grad_norm=0.0, precision="float32")
    weight = next(iter(engine.module.parameters()))
    engine.backward((weight * gradient).sum())
    engine.step()
    assert weight.item() == pytest.approx(-0.1 * gradient / (gradient + 1e-5), rel=1e-4)


def test_a_step_is_as_long_as_the_schedule_says() -> None:
    # Equal gradients far above epsilon: every step of Adam is as long as the rate, here 0.1 and then 0.025.
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    engine = prepare(
        model, learning_rate=0.1, schedule=lambda step: 0.25**step, max_grad_norm=0.0, precision="float32"
    )  # fmt: skip
    weight = next(iter(engine.module.parameters()))
    reached = []
    for _ in range(2):
        engine.backward((weight * 3.0).sum())
        engine.step()
        reached.append(weight.item())
    assert reached == pytest.approx([-0.1, -0.125], abs=1e-5)
