"""The policy-gradient family: by hand, by identity, and blind to what lies under the mask."""

import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.losses.aggregation import sequence_mean
from rlhf.losses.policy_gradient import (
    PolicyLoss,
    clipped_penalised_loss,
    clipped_policy_loss,
    importance_sampled_loss,
    penalised_loss,
    reinforce_loss,
)

ATOL = 1e-6
Objective = Callable[..., PolicyLoss]
clipped = functools.partial(clipped_policy_loss, clip_range_low=0.2, clip_range_high=0.2, dual_clip=None)
penalised = functools.partial(penalised_loss, step_kl_coef=0.5)
FAMILY = {
    "clipped": clipped,
    "dual": functools.partial(clipped_policy_loss, clip_range_low=0.2, clip_range_high=0.3, dual_clip=3.0),
    "reinforce": reinforce_loss,
    "importance": importance_sampled_loss,
    "penalised": penalised,
    "both": functools.partial(
        clipped_penalised_loss, clip_range_low=0.2, clip_range_high=0.2, dual_clip=None, step_kl_coef=0.5
    ),
}
family = pytest.mark.parametrize("objective", FAMILY.values(), ids=FAMILY)


def one_token(ratio: float, advantage: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tensors [1, 1] of one token whose probability changed by `ratio` since it was sampled."""
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_()
    return logprobs, old, torch.tensor([[advantage]], dtype=torch.float64), torch.tensor([[True]])


def random_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 6, generator=generator, dtype=torch.float64) * 3
    logprobs = old + 0.4 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 6, generator=generator) < 0.6
    mask[:, 2] = True
    return logprobs, old, advantages, mask


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "stopped"),
    [
        # min(0.7 * 0.1, 0.8 * 0.1) = 0.07: the unclipped, more pessimistic value, so the token may still rise
        (0.1, 0.7, -0.07, False),
        # min(1.5 * 0.1, 1.2 * 0.1) = 0.12: far enough up, no more gradient
        (0.1, 1.5, -0.12, True),
        # min(0.7 * -0.1, 0.8 * -0.1) = -0.08: far enough down, no more gradient
        (-0.1, 0.7, 0.08, True),
        # min(1.5 * -0.1, 1.2 * -0.1) = -0.15: the more negative value
        (-0.1, 1.5, 0.15, False),
        # inside the range
        (0.1, 1.1, -0.11, False),
    ],
)
def test_clip_by_hand(advantage: float, ratio: float, loss: float, stopped: bool) -> None:
    tensors = one_token(ratio, advantage)
    found = clipped(*tensors)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loss, abs=ATOL)
    assert found.clip_fraction == float(stopped)
    gradient = tensors[0].grad
    assert gradient is not None
    # d(-r A)/d log p = -r A
    assert gradient.item() == pytest.approx(0.0 if stopped else -ratio * advantage, abs=ATOL)


def test_ranges_may_differ() -> None:
    loss = functools.partial(clipped_policy_loss, clip_range_low=0.2, clip_range_high=0.28, dual_clip=None)
    # 1.25 lies inside the upper range, 1.5 is held at 1.28, 0.7 with A < 0 at 0.8
    assert loss(*one_token(1.25, 1.0)).loss.item() == pytest.approx(-1.25, abs=ATOL)
    assert loss(*one_token(1.5, 1.0)).loss.item() == pytest.approx(-1.28, abs=ATOL)
    assert loss(*one_token(0.7, -1.0)).loss.item() == pytest.approx(0.8, abs=ATOL)


def test_dual_clip_bounds_a_runaway_ratio() -> None:
    loss = functools.partial(clipped_policy_loss, clip_range_low=0.2, clip_range_high=0.2, dual_clip=3.0)
    # A = -1, r = 8: 8 without, 3 with; r = 2 is below the bound; A > 0 is not touched
    assert clipped(*one_token(8.0, -1.0)).loss.item() == pytest.approx(8, abs=ATOL)
    bounded = loss(*one_token(8.0, -1.0))
    assert bounded.loss.item() == pytest.approx(3, abs=ATOL)
    assert bounded.clip_fraction == 1
    assert loss(*one_token(2.0, -1.0)).loss.item() == pytest.approx(2, abs=ATOL)
    assert loss(*one_token(8.0, 1.0)).loss.item() == pytest.approx(-1.2, abs=ATOL)


def test_the_others_by_hand() -> None:
    # REINFORCE: -A log p = -2 (-1 + ln 1.5); importance sampling: -1.5 * 2
    assert reinforce_loss(*one_token(1.5, 2.0)).loss.item() == pytest.approx(2 * (1 - math.log(1.5)), abs=ATOL)
    assert importance_sampled_loss(*one_token(1.5, 2.0)).loss.item() == pytest.approx(-3, abs=ATOL)
    # -3 + 0.5 (0.5 - ln 1.5)
    wanted = -3 + 0.5 * (0.5 - math.log(1.5))
    assert penalised(*one_token(1.5, 2.0)).loss.item() == pytest.approx(wanted, abs=ATOL)


def test_clip_and_penalty_together_by_hand() -> None:
    # A = 2, r = 1.5: the clip holds the gain at 1.2 * 2, the price is 0.5 (0.5 - ln 1.5)
    tensors = one_token(1.5, 2.0)
    found = FAMILY["both"](*tensors)
    assert found.loss.item() == pytest.approx(-2.4 + 0.5 * (0.5 - math.log(1.5)), abs=ATOL)
    found.loss.backward()
    assert tensors[0].grad is not None
    # Only the price still pulls, back towards the policy that sampled: d/d log p of 0.5 (r - 1 - log r) = 0.5 (r - 1)
    assert tensors[0].grad.item() == pytest.approx(0.25, abs=ATOL)
    assert found.clip_fraction == 1


def test_clip_and_penalty_together_reduce_to_either() -> None:
    batch = random_batch()
    settings = {"clip_range_low": 0.2, "clip_range_high": 0.2, "dual_clip": None}
    assert clipped_penalised_loss(*batch, **settings, step_kl_coef=0.0).loss == clipped(*batch).loss
    wide = {"clip_range_low": 1.0, "clip_range_high": 1e6, "dual_clip": None}
    both = clipped_penalised_loss(*batch, **wide, step_kl_coef=0.5).loss
    assert torch.allclose(both, penalised(*batch).loss, atol=1e-12)


def test_diagnostics_by_hand() -> None:
    old = torch.zeros(1, 2)
    logprobs = torch.log(torch.tensor([[1.5, 0.9]]))
    found = clipped(logprobs, old, torch.tensor([[1.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool))
    assert found.clip_fraction.item() == pytest.approx(0.5, abs=ATOL)
    assert found.mean_ratio.item() == pytest.approx(1.2, abs=ATOL)
    assert found.max_ratio_error.item() == pytest.approx(0.5, abs=ATOL)
    # ((0.5 - ln 1.5) + (-0.1 - ln 0.9)) / 2
    assert found.approx_kl.item() == pytest.approx((0.4 - math.log(1.5) - math.log(0.9)) / 2, abs=ATOL)


@family
def test_before_the_first_step_all_are_one(objective: Objective) -> None:
    _, old, advantages, mask = random_batch()
    logprobs = old.clone().requires_grad_()
    found = objective(logprobs, old, advantages, mask)
    found.loss.backward()
    assert found.clip_fraction == 0
    assert found.approx_kl == 0
    assert found.mean_ratio.item() == pytest.approx(1, abs=1e-12)
    assert found.max_ratio_error == 0
    assert logprobs.grad is not None
    # All have the policy gradient -A / N at equal policies; that of the penalty is 0 there.
    wanted = torch.where(mask, -advantages, 0.0) / mask.sum()
    assert torch.allclose(logprobs.grad, wanted, atol=1e-12)


@pytest.mark.parametrize("name", ["clipped", "dual", "importance", "penalised"])
def test_with_equal_logprobs_the_loss_is_minus_the_mean_advantage(name: str) -> None:
    _, old, advantages, mask = random_batch()
    wanted = -float(advantages[mask].mean())
    assert FAMILY[name](old, old, advantages, mask).loss.item() == pytest.approx(wanted, abs=1e-12)


def test_inside_the_range_the_clip_does_nothing() -> None:
    logprobs, old, advantages, mask = random_batch()
    near = old + (logprobs - old).clamp(-0.15, 0.15)
    assert torch.allclose(
        clipped(near, old, advantages, mask).loss, importance_sampled_loss(near, old, advantages, mask).loss
    )


def test_no_penalty_is_importance_sampling() -> None:
    batch = random_batch()
    assert torch.allclose(penalised_loss(*batch, step_kl_coef=0.0).loss, importance_sampled_loss(*batch).loss)


def test_the_penalty_has_the_gradient_of_the_kl_from_the_policy_that_sampled() -> None:
    # Three tokens, drawn exactly in proportion 2 : 1 : 1 from old = (1/2, 1/4, 1/4); advantages 0.
    old = torch.log(torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    drawn = torch.tensor([0, 0, 1, 2])
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    new = torch.log_softmax(logits, 0)
    mask = torch.ones(1, 4, dtype=torch.bool)
    loss = penalised_loss(
        new[drawn][None], old[drawn][None], torch.zeros(1, 4, dtype=torch.float64), mask, step_kl_coef=1.0
    ).loss
    (found,) = torch.autograd.grad(loss, logits)
    # The gradient of KL(old || softmax) by the logits is softmax - old.
    assert torch.allclose(found, new.exp().detach() - old.exp(), atol=1e-12)


@family
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_lies_under_the_mask_reaches_neither_value_nor_gradient(objective: Objective, poison: float) -> None:
    *tensors, mask = random_batch()
    clean = objective(*tensors, mask)
    logprobs, old, advantages = (torch.where(mask, x, poison) for x in tensors)
    logprobs.requires_grad_()
    found = objective(logprobs, old, advantages, mask)
    found.loss.backward()
    for value, wanted in zip(found, clean, strict=True):
        assert torch.equal(value.detach(), wanted)
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()
    assert bool((logprobs.grad[~mask] == 0).all())


@family
def test_micro_batches_add_up(objective: Objective) -> None:
    batch = random_batch()
    total = int(batch[3].sum())
    whole = objective(*batch)
    parts = [objective(*(x[rows] for x in batch), total_tokens=total) for rows in (slice(0, 1), slice(1, 4))]
    for name in ("loss", "clip_fraction", "approx_kl", "mean_ratio"):
        found = sum(float(getattr(part, name)) for part in parts)
        assert found == pytest.approx(float(getattr(whole, name)), abs=1e-12)
    assert max(float(part.max_ratio_error) for part in parts) == float(whole.max_ratio_error)


@family
def test_gradcheck(objective: Objective) -> None:
    logprobs, old, advantages, mask = random_batch()
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x, old, advantages, mask).loss, logprobs)


@family
def test_a_good_token_becomes_likelier(objective: Objective) -> None:
    logprobs, old, advantages, mask = one_token(1.0, 0.5)
    objective(logprobs, old, advantages, mask).loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() < 0


def test_constants_take_no_gradient() -> None:
    logprobs, old, advantages, mask = random_batch()
    for tensor in (logprobs, old, advantages):
        tensor.requires_grad_()
    found = clipped(logprobs, old, advantages, mask)
    found.loss.backward()
    assert old.grad is None
    assert advantages.grad is None
    assert not any(value.requires_grad for value in found[1:])


def test_an_enormous_log_ratio_stays_finite() -> None:
    old = torch.tensor([[-500.0, -1.0]])
    logprobs = torch.tensor([[-1.0, -500.0]], requires_grad=True)
    found = clipped(logprobs, old, torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
    found.loss.backward()
    assert all(torch.isfinite(value) for value in found)
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()


def test_another_aggregation_can_be_composed() -> None:
    old = torch.zeros(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0, 2.0, 3.0], [5.0, 0.0, 0.0]])
    # Equal policies: -A; ((1 + 2 + 3) / 3 + 5) / 2 = 3.5 against 11 / 4 for tokens
    assert clipped(old, old, advantages, mask, aggregate=sequence_mean).loss == -3.5
    assert clipped(old, old, advantages, mask).loss == -2.75


def test_bad_input_is_refused() -> None:
    logprobs, old, advantages, mask = random_batch()
    with pytest.raises(ValueError, match=r"advantages has shape \(4,\) but logprobs has \(4, 6\)"):
        clipped(logprobs, old, advantages[:, 0], mask)
    with pytest.raises(ValueError, match="total_tokens is 0"):
        clipped(logprobs, old, advantages, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="clip_range_low is 0"):
        clipped_policy_loss(*random_batch(), clip_range_low=0.0, clip_range_high=0.2, dual_clip=None)
    with pytest.raises(ValueError, match=r"dual_clip is 1.1"):
        clipped_policy_loss(*random_batch(), clip_range_low=0.2, clip_range_high=0.2, dual_clip=1.1)
    with pytest.raises(ValueError, match="step_kl_coef is -1"):
        penalised_loss(*random_batch(), step_kl_coef=-1.0)
