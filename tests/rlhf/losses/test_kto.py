"""KTO's value function and its reference point."""

import math

import pytest
import torch

from rlhf.losses.kto import kto_loss, reference_point

ATOL = 1e-6
LOGPROBS = torch.tensor([-10.0, -12.0, -7.0])
REFERENCE = torch.tensor([-12.0, -11.0, -10.0])
GOOD = torch.tensor([True, False, False])
ZERO = torch.tensor(0.0)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def kto(logprobs=LOGPROBS, reference=REFERENCE, good=GOOD, *, z0=0.5, beta=0.1, weights=(1.0, 1.0), total=None):
    return kto_loss(
        logprobs, reference, good, reference_point=torch.tensor(z0), beta=beta, desirable_weight=weights[0],
        undesirable_weight=weights[1], total_judgements=total,
    )  # fmt: skip


def test_by_hand():
    # Log-ratios 2, -1, 3; less z0 = 0.5: 1.5, -1.5, 2.5; times 0.1: 0.15, -0.15, 0.25.
    # Good: 1 - s(0.15). Bad: 1 - s(0.15) and 1 - s(-0.25). Weights 1 and 2.
    found = kto(weights=(1.0, 2.0))
    wanted = (1 - sigmoid(0.15) + 2 * (1 - sigmoid(0.15)) + 2 * (1 - sigmoid(-0.25))) / 3
    assert found.loss.item() == pytest.approx(wanted, abs=ATOL)
    assert found.rewards.tolist() == pytest.approx([0.2, -0.1, 0.3], abs=ATOL)
    assert not found.rewards.requires_grad


def test_a_policy_equal_to_its_reference_costs_half_of_each_weight():
    # s(0) = 1/2: (1.0 + 3.0 + 3.0) / 2 / 3
    found = kto(REFERENCE, z0=0.0, weights=(1.0, 3.0))
    assert found.loss.item() == pytest.approx(7 / 6, abs=ATOL)
    assert found.rewards.tolist() == [0, 0, 0]


def test_a_pair_as_two_judgements_with_z0_between_them_is_a_sigmoid_loss_of_half_the_gap():
    # With z0 in the middle of the two log-ratios both terms are s(-beta gap / 2).
    found = kto(LOGPROBS[:2] + 3, good=GOOD[:2], reference=REFERENCE[:2], z0=3.5)
    # Ratios 5 and 2: gap 3, middle 3.5.
    assert found.loss.item() == pytest.approx(sigmoid(-0.1 * 1.5), abs=ATOL)


def test_swapping_the_classes_mirrors_the_ratios_about_z0():
    mirrored = 2 * 0.5 - (LOGPROBS - REFERENCE) + REFERENCE
    assert kto(mirrored, good=~GOOD).loss.item() == pytest.approx(kto().loss.item(), abs=ATOL)


def test_a_shift_of_policy_and_reference_alike_changes_nothing():
    shift = torch.tensor([3.0, -7.0, 20.0])
    assert kto(LOGPROBS + shift, REFERENCE + shift).loss.item() == pytest.approx(kto().loss.item(), abs=1e-5)


def test_gradient_raises_good_answers_lowers_bad_ones_and_fades_far_from_z0():
    logprobs, reference = LOGPROBS.clone().requires_grad_(), REFERENCE.clone().requires_grad_()
    z0 = torch.tensor(0.5, requires_grad=True)
    found = kto_loss(
        logprobs, reference, GOOD, reference_point=z0, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0
    )
    found.loss.backward()
    assert [bool(g < 0) for g in logprobs.grad] == [True, False, False]
    assert reference.grad is None
    assert z0.grad is None
    far = (REFERENCE + torch.tensor([400.0, 400.0, -400.0])).requires_grad_()
    kto(far).loss.backward()
    assert far.grad.abs().max() < 1e-12


def test_gradcheck():
    assert torch.autograd.gradcheck(
        lambda x: kto(x, REFERENCE.double(), beta=0.7, weights=(1.0, 1.5)).loss, LOGPROBS.double().requires_grad_()
    )


def test_micro_batches_add_up():
    parts = [kto(LOGPROBS[i : i + 1], REFERENCE[i : i + 1], GOOD[i : i + 1], total=3).loss for i in range(3)]
    assert sum(part.item() for part in parts) == pytest.approx(kto().loss.item(), abs=ATOL)


def test_the_reference_point_by_hand():
    # (2 - 1 + 3) / 3
    assert reference_point(LOGPROBS, REFERENCE).item() == pytest.approx(4 / 3, abs=ATOL)
    # A mean below 0 is no KL.
    assert reference_point(REFERENCE, LOGPROBS).item() == 0
    assert reference_point(LOGPROBS[:0], REFERENCE[:0]).item() == 0
    assert not reference_point(LOGPROBS.clone().requires_grad_(), REFERENCE).requires_grad


def test_the_reference_point_does_not_depend_on_the_order():
    order = torch.tensor([2, 0, 1])
    assert reference_point(LOGPROBS[order], REFERENCE[order]) == reference_point(LOGPROBS, REFERENCE)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"ref_logprobs has shape \(2,\) but logprobs has \(3,\)"):
        kto(reference=REFERENCE[:2])
    with pytest.raises(ValueError, match="must have 1 dimensions"):
        kto(LOGPROBS[None], REFERENCE[None], GOOD[None])
    with pytest.raises(ValueError, match="must be bool"):
        kto(good=GOOD.float())
    with pytest.raises(ValueError, match=r"beta is 0\.0"):
        kto(beta=0.0)
    with pytest.raises(ValueError, match=r"desirable_weight 0\.0, undesirable_weight 1"):
        kto(weights=(0.0, 1.0))
    with pytest.raises(ValueError, match="undesirable_weight 0"):
        kto(weights=(1.0, 0.0))
    for z0 in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="reference_point is"):
            kto(z0=z0)
    with pytest.raises(ValueError, match="reference_point has shape"):
        kto_loss(
            LOGPROBS, REFERENCE, GOOD, reference_point=REFERENCE, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0
        )
    with pytest.raises(ValueError, match=r"ref_logprobs has shape \(3,\) but logprobs has \(2,\)"):
        reference_point(LOGPROBS[:2], REFERENCE)
