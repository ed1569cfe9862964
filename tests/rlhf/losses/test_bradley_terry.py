"""The reward model's loss on pairs."""

import math

import pytest
import torch

from rlhf.losses.bradley_terry import bradley_terry_loss, decided_accuracy, pair_negative_log_likelihood

ATOL = 1e-6
CHOSEN = torch.tensor([math.log(3), 0.0, 2.0])
REJECTED = torch.tensor([0.0, 1.0, 2.0])
ONES = torch.ones(3)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_by_hand() -> None:
    # sigma(ln 3) = 3/4; sigma(-1); sigma(0) = 1/2
    found = bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=None, centering=0.0)
    assert found.loss.item() == pytest.approx((math.log(4 / 3) + softplus(1) + math.log(2)) / 3, abs=ATOL)
    # right, wrong, undecided
    assert found.accuracy.item() == pytest.approx(0.5, abs=ATOL)
    assert found.margin.item() == pytest.approx((math.log(3) - 1) / 3, abs=ATOL)


def test_equal_scores_cost_ln_2_whatever_the_label() -> None:
    for label in (0.0, 0.3, 0.5, 1.0):
        found = bradley_terry_loss(CHOSEN, CHOSEN, ONES * label, margin=None, centering=0.0)
        assert found.loss.item() == pytest.approx(math.log(2), abs=ATOL)


def test_a_soft_label_is_the_mixture_of_both_orders() -> None:
    one = bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=None, centering=0.0).loss
    other = bradley_terry_loss(REJECTED, CHOSEN, ONES, margin=None, centering=0.0).loss
    mixed = bradley_terry_loss(CHOSEN, REJECTED, ONES * 0.7, margin=None, centering=0.0).loss
    assert mixed.item() == pytest.approx(float(0.7 * one + 0.3 * other), abs=ATOL)


def test_swapping_answers_and_label_changes_nothing() -> None:
    label, margin = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.5, 0.0, 1.0])
    one = bradley_terry_loss(CHOSEN, REJECTED, label, margin=margin, centering=0.01)
    other = bradley_terry_loss(REJECTED, CHOSEN, 1 - label, margin=margin, centering=0.01)
    assert one.loss.item() == pytest.approx(other.loss.item(), abs=ATOL)
    assert one.accuracy == other.accuracy


def test_a_tie_is_best_at_equal_scores() -> None:
    chosen = torch.tensor([2.0], requires_grad=True)
    bradley_terry_loss(chosen, torch.tensor([1.0]), torch.tensor([0.5]), margin=None, centering=0.0).loss.backward()
    assert chosen.grad is not None
    # sigma(1) - 1/2 > 0: the higher score is pulled down
    assert chosen.grad.item() == pytest.approx(1 / (1 + math.exp(-1)) - 0.5, abs=ATOL)


def test_margin_by_hand() -> None:
    # sigma(ln 3 - ln 3) = 1/2
    found = bradley_terry_loss(CHOSEN[:1], REJECTED[:1], ONES[:1], margin=CHOSEN[:1], centering=0.0)
    assert found.loss.item() == pytest.approx(math.log(2), abs=ATOL)


def test_no_margin_and_a_margin_of_zero_are_the_same_bits() -> None:
    plain = bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=None, centering=0.01).loss
    assert torch.equal(bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=ONES * 0, centering=0.01).loss, plain)


def test_a_margin_asks_for_more_the_larger_it_is() -> None:
    chosen = torch.tensor([1.0], requires_grad=True)
    forces = []
    for margin in (0.0, 1.0, 2.0):
        loss = bradley_terry_loss(chosen, REJECTED[:1], ONES[:1], margin=torch.tensor([margin]), centering=0.0).loss
        (force,) = torch.autograd.grad(loss, chosen)
        forces.append(force.item())
    # sigma(1 - margin) - 1
    assert forces == pytest.approx([1 / (1 + math.exp(m - 1)) - 1 for m in (0, 1, 2)], abs=ATOL)


def test_the_mean_of_its_terms_is_the_loss() -> None:
    settings = {"margin": torch.tensor([0.5, 0.0, 1.0]), "centering": 0.01}
    terms = pair_negative_log_likelihood(CHOSEN, REJECTED, ONES * 0.8, **settings)
    found = bradley_terry_loss(CHOSEN, REJECTED, ONES * 0.8, **settings).loss
    assert terms.shape == (3,)
    assert found.item() == pytest.approx(terms.mean().item(), abs=ATOL)
    with pytest.raises(ValueError, match="label has shape"):
        pair_negative_log_likelihood(CHOSEN, REJECTED, ONES[:2], **settings)


def test_centring_by_hand() -> None:
    plain = bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=None, centering=0.0).loss
    centred = bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=None, centering=0.01).loss
    # sums ln 3, 1, 4
    assert (centred - plain).item() == pytest.approx(0.01 * (math.log(3) ** 2 + 1 + 16) / 3, abs=ATOL)


def test_only_centring_sees_a_constant() -> None:
    def loss(shift: float, centering: float) -> float:
        return bradley_terry_loss(CHOSEN + shift, REJECTED + shift, ONES, margin=None, centering=centering).loss.item()

    assert loss(5.0, 0.0) == pytest.approx(loss(0.0, 0.0), abs=ATOL)
    assert loss(5.0, 0.01) > loss(0.0, 0.01) + 0.1


def test_scores_are_lifted_to_float32() -> None:
    found = bradley_terry_loss(CHOSEN.bfloat16(), REJECTED.bfloat16(), ONES, margin=None, centering=0.01)
    assert found.loss.dtype == torch.float32


def test_huge_differences_stay_finite() -> None:
    chosen = torch.tensor([-1e4], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.tensor([1e4]), torch.ones(1), margin=None, centering=0.0).loss
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert chosen.grad is not None
    assert chosen.grad.item() == -1


def test_micro_batches_add_up() -> None:
    parts = [
        bradley_terry_loss(CHOSEN[s], REJECTED[s], ONES[s], margin=None, centering=0.01, total_pairs=3)
        for s in (slice(0, 1), slice(1, 3))
    ]
    whole = bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=None, centering=0.01)
    assert sum(float(part.loss) for part in parts) == pytest.approx(whole.loss.item(), abs=ATOL)
    assert sum(float(part.margin) for part in parts) == pytest.approx(whole.margin.item(), abs=ATOL)


def test_gradcheck() -> None:
    chosen, rejected = CHOSEN.double().requires_grad_(), REJECTED.double().requires_grad_()
    label = torch.tensor([0.9, 0.5, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: bradley_terry_loss(a, b, label, margin=label, centering=0.01).loss, (chosen, rejected)
    )


def test_accuracy_leaves_ties_out() -> None:
    difference = torch.tensor([1.0, -1.0, 5.0, 0.0])
    # Two decided pairs: right, and an equal score that counts half.
    assert decided_accuracy(difference, torch.tensor([1.0, 0.5, 0.5, 0.8])) == 0.75
    # A label below 0.5 says that the rejected answer is better.
    assert decided_accuracy(difference, torch.tensor([0.0, 0.1, 0.5, 0.5])) == 0.5
    assert decided_accuracy(difference, torch.full((4,), 0.5)) == 0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rejected_scores has shape \(2,\) but chosen_scores has \(3,\)"):
        bradley_terry_loss(CHOSEN, REJECTED[:2], ONES, margin=None, centering=0.0)
    with pytest.raises(ValueError, match="must have 1 dimensions"):
        bradley_terry_loss(CHOSEN[None], REJECTED[None], ONES[None], margin=None, centering=0.0)
    with pytest.raises(ValueError, match=r"margin has shape \(2,\) but difference has \(3,\)"):
        bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=torch.zeros(2), centering=0.0)
    for label in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
            bradley_terry_loss(CHOSEN, REJECTED, ONES * label, margin=None, centering=0.0)
    with pytest.raises(ValueError, match="centering is -1"):
        bradley_terry_loss(CHOSEN, REJECTED, ONES, margin=None, centering=-1.0)
