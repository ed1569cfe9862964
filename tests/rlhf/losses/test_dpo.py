"""Direct preference objectives."""

import functools
import math
from collections.abc import Callable

import pytest
import torch

from rlhf.losses.bradley_terry import bradley_terry_loss
from rlhf.losses.dpo import DpoLoss, dpo_loss, ipo_loss

ATOL = 1e-6
CHOSEN = torch.tensor([-10.0, -12.0])
REJECTED = torch.tensor([-11.0, -9.0])
REF_CHOSEN = torch.tensor([-12.0, -11.0])
REF_REJECTED = torch.tensor([-10.0, -10.0])
TENSORS = (CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED)
ONES = torch.ones(2)
dpo = functools.partial(dpo_loss, beta=0.1, label_smoothing=0.0)
ipo = functools.partial(ipo_loss, beta=0.1)
both = pytest.mark.parametrize("objective", [dpo, ipo], ids=["dpo", "ipo"])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_dpo_by_hand() -> None:
    # Log-ratios: chosen 2, -1; rejected -1, 1. Times 0.1: logits 0.3, -0.2.
    found = dpo(*TENSORS, ONES)
    assert found.loss.item() == pytest.approx((softplus(-0.3) + softplus(0.2)) / 2, abs=ATOL)
    assert found.chosen_reward.item() == pytest.approx(0.05, abs=ATOL)
    assert found.rejected_reward.item() == pytest.approx(0.0, abs=ATOL)
    assert found.margin.item() == pytest.approx(0.05, abs=ATOL)
    assert found.accuracy == 0.5


def test_ipo_by_hand() -> None:
    # Gaps 3 and -2; target 1 / (2 * 0.1) = 5: (4 + 49) / 2
    assert ipo(*TENSORS, ONES).loss.item() == pytest.approx(26.5, abs=1e-4)
    # A tie has the target 0: (9 + 4) / 2
    assert ipo(*TENSORS, ONES * 0.5).loss.item() == pytest.approx(6.5, abs=1e-4)


@pytest.mark.parametrize("label", [0.0, 0.3, 0.5, 1.0])
def test_a_policy_equal_to_its_reference_costs_ln_2(label: float) -> None:
    found = dpo(CHOSEN, REJECTED, CHOSEN, REJECTED, ONES * label)
    assert found.loss.item() == pytest.approx(math.log(2), abs=ATOL)
    assert (found.chosen_reward, found.rejected_reward, found.margin) == (0, 0, 0)


def test_dpo_is_bradley_terry_on_implicit_rewards() -> None:
    label = torch.tensor([0.8, 0.5])
    rewards = (0.1 * (CHOSEN - REF_CHOSEN), 0.1 * (REJECTED - REF_REJECTED))
    wanted = bradley_terry_loss(*rewards, label, margin=None, centering=0.0).loss
    assert dpo(*TENSORS, label).loss.item() == pytest.approx(wanted.item(), abs=ATOL)


@both
def test_the_term_of_the_prompt_cancels(objective: Callable[..., DpoLoss]) -> None:
    # beta log Z(x) is added to both implicit rewards of a pair; as if both reference log-probs were shifted alike.
    shift = torch.tensor([3.0, -7.0])
    moved = objective(CHOSEN, REJECTED, REF_CHOSEN + shift, REF_REJECTED + shift, ONES)
    assert moved.loss.item() == pytest.approx(objective(*TENSORS, ONES).loss.item(), abs=1e-4)


def test_smoothing_by_hand_and_as_a_soft_label() -> None:
    smoothed = dpo_loss(*TENSORS, ONES, beta=0.1, label_smoothing=0.1).loss
    # 0.9 softplus(-h) + 0.1 softplus(h) for h = 0.3, -0.2
    wanted = (0.9 * softplus(-0.3) + 0.1 * softplus(0.3) + 0.9 * softplus(0.2) + 0.1 * softplus(-0.2)) / 2
    assert smoothed.item() == pytest.approx(wanted, abs=ATOL)
    assert smoothed.item() == pytest.approx(dpo(*TENSORS, ONES * 0.9).loss.item(), abs=ATOL)
    # On top of a soft label: 0.9 * 0.8 + 0.1 * 0.2 = 0.74
    on_soft = dpo_loss(*TENSORS, ONES * 0.8, beta=0.1, label_smoothing=0.1).loss
    assert on_soft.item() == pytest.approx(dpo(*TENSORS, ONES * 0.74).loss.item(), abs=ATOL)


@both
def test_swapping_answers_and_label_changes_nothing(objective: Callable[..., DpoLoss]) -> None:
    label = torch.tensor([0.9, 0.5])
    swapped = objective(REJECTED, CHOSEN, REF_REJECTED, REF_CHOSEN, 1 - label)
    assert swapped.loss.item() == pytest.approx(objective(*TENSORS, label).loss.item(), abs=1e-4)


@both
def test_gradient_raises_the_chosen_and_lowers_the_rejected(objective: Callable[..., DpoLoss]) -> None:
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    references = REF_CHOSEN.clone().requires_grad_(), REF_REJECTED.clone().requires_grad_()
    found = objective(chosen, rejected, *references, ONES)
    found.loss.backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert bool((chosen.grad < 0).all())
    assert bool((rejected.grad > 0).all())
    assert references[0].grad is None
    assert not any(value.requires_grad for value in found[1:])


@both
def test_gradcheck(objective: Callable[..., DpoLoss]) -> None:
    chosen, rejected, *references = (x.double() for x in TENSORS)
    chosen.requires_grad_()
    rejected.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: objective(a, b, *references, ONES * 0.8).loss, (chosen, rejected))


@both
def test_micro_batches_add_up(objective: Callable[..., DpoLoss]) -> None:
    whole = objective(*TENSORS, ONES)
    parts = [objective(*(x[i : i + 1] for x in TENSORS), ONES[:1], total_pairs=2) for i in range(2)]
    for name in ("loss", "chosen_reward", "rejected_reward", "margin"):
        found = sum(float(getattr(part, name)) for part in parts)
        assert found == pytest.approx(float(getattr(whole, name)), abs=1e-4)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ref_chosen has shape \(1,\) but chosen_logprobs has \(2,\)"):
        dpo(CHOSEN, REJECTED, REF_CHOSEN[:1], REF_REJECTED, ONES)
    with pytest.raises(ValueError, match="beta is 0"):
        dpo_loss(*TENSORS, ONES, beta=0.0, label_smoothing=0.0)
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5"):
        dpo_loss(*TENSORS, ONES, beta=0.1, label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        ipo(*TENSORS, ONES * 2)
