"""Direct preference objectives."""

import functools
import math
from collections.abc import Callable

import pytest
import torch

from rlhf.losses.bradley_terry import bradley_terry_loss
from rlhf.losses.dpo import DpoLoss, dpo_loss, ipo_loss, length_normalised, preferred_nll
from rlhf.losses.language_model import completion_loss

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


def test_ipo_is_the_squared_distance_of_the_gap_from_its_target() -> None:
    # At the reference the gap is 0 and the target 1 / (2 beta) = 5; at the target the loss is 0.
    assert ipo(CHOSEN, REJECTED, CHOSEN, REJECTED, ONES).loss.item() == pytest.approx(25, abs=1e-4)
    assert ipo(CHOSEN + 5, REJECTED, CHOSEN, REJECTED, ONES).loss.item() == pytest.approx(0, abs=1e-4)


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
    with pytest.raises(ValueError, match=r"ref_rejected has shape \(1,\) but chosen_logprobs has \(2,\)"):
        ipo(CHOSEN, REJECTED, REF_CHOSEN, REF_REJECTED[:1], ONES)


LENGTHS = torch.tensor([4, 3])


def test_length_normalised_by_hand() -> None:
    # -10 / 4 and -12 / 3
    assert length_normalised(CHOSEN, LENGTHS).tolist() == [-2.5, -4.0]
    # Of length 1 nothing changes, and an empty response stays 0.
    assert torch.equal(length_normalised(CHOSEN, torch.ones(2)), CHOSEN)
    assert length_normalised(torch.zeros(2), torch.tensor([0, 5])).tolist() == [0, 0]


@both
def test_means_over_equal_lengths_need_a_beta_larger_by_the_length(objective: Callable[..., DpoLoss]) -> None:
    # beta / 4 on sums is beta on means of 4 tokens: the same rewards.
    four = torch.full((2,), 4)
    means = objective(*(length_normalised(x, four) for x in TENSORS), ONES, beta=0.4)
    sums = objective(*TENSORS, ONES, beta=0.1)
    assert means.margin.item() == pytest.approx(sums.margin.item(), abs=ATOL)
    assert means.chosen_reward.item() == pytest.approx(sums.chosen_reward.item(), abs=ATOL)


def test_a_repeated_answer_keeps_its_log_probability_per_token() -> None:
    # The same tokens twice: twice the sum, twice the length.
    assert torch.equal(length_normalised(2 * CHOSEN, 2 * LENGTHS), length_normalised(CHOSEN, LENGTHS))


def test_without_a_reference_the_reward_is_the_log_probability() -> None:
    nothing = torch.zeros(2)
    found = dpo(CHOSEN, REJECTED, nothing, nothing, ONES)
    # 0.1 * (-10 - 12) / 2 and 0.1 * (-11 - 9) / 2; logits 0.1, -0.3
    assert found.chosen_reward.item() == pytest.approx(-1.1, abs=ATOL)
    assert found.rejected_reward.item() == pytest.approx(-1.0, abs=ATOL)
    assert found.loss.item() == pytest.approx((softplus(-0.1) + softplus(0.3)) / 2, abs=ATOL)


def test_preferred_nll_by_hand() -> None:
    per_token = length_normalised(CHOSEN, LENGTHS), length_normalised(REJECTED, LENGTHS)
    # (2.5 + 4) / 2; the second label prefers the rejected one: -9 / 3, so (2.5 + 3) / 2
    assert preferred_nll(*per_token, ONES).item() == pytest.approx(3.25, abs=ATOL)
    assert preferred_nll(*per_token, torch.tensor([1.0, 0.2])).item() == pytest.approx(2.75, abs=ATOL)


def test_preferred_nll_of_one_pair_is_the_completion_loss() -> None:
    tokens = torch.tensor([[-1.0, -2.0, -4.0]])
    found = preferred_nll(
        length_normalised(tokens.sum(dim=1), torch.tensor([3])), torch.tensor([torch.nan]), torch.ones(1)
    )
    assert found.item() == pytest.approx(completion_loss(tokens, torch.ones(1, 3, dtype=torch.bool)).item(), abs=ATOL)


def test_preferred_nll_adds_up_and_its_gradient_reaches_one_side_only() -> None:
    whole = preferred_nll(CHOSEN, REJECTED, ONES)
    parts = [preferred_nll(CHOSEN[i : i + 1], REJECTED[i : i + 1], ONES[:1], total_pairs=2) for i in range(2)]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item(), abs=ATOL)
    chosen, rejected = CHOSEN.double().requires_grad_(), REJECTED.double().requires_grad_()
    label = torch.tensor([1.0, 0.0])
    assert torch.autograd.gradcheck(lambda a, b: preferred_nll(a, b, label), (chosen, rejected))
    assert torch.autograd.gradcheck(lambda a: length_normalised(a, LENGTHS), (chosen,))
    preferred_nll(chosen, rejected, label).backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == [-0.5, 0]
    assert rejected.grad.tolist() == [0, -0.5]


def test_bad_lengths_and_sides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lengths has shape \(1,\) but logprobs has \(2,\)"):
        length_normalised(CHOSEN, LENGTHS[:1])
    with pytest.raises(ValueError, match="a length is negative"):
        length_normalised(CHOSEN, -LENGTHS)
    with pytest.raises(ValueError, match="must have 1 dimensions"):
        length_normalised(CHOSEN[None], LENGTHS[None])
    with pytest.raises(ValueError, match="rejected_per_token has shape"):
        preferred_nll(CHOSEN, REJECTED[:1], ONES)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        preferred_nll(CHOSEN, REJECTED, 2 * ONES)
