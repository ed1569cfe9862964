import math

import pytest
import torch

from rlhf.losses.bradley_terry import bradley_terry_loss
from rlhf.losses.replaced_tokens import replaced_token_loss

ATOL = 1e-6
SCORES = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
ORIGINAL = torch.tensor([[True, False, False], [True, True, True]])
JUDGED = torch.tensor([[True, True, True], [False, False, True]])


def test_value_by_hand():
    # judged: +2 original, -1 swapped, +0.5 swapped, -2 original
    # log(1 + e^-2) = 0.126928, log(1 + e^-1) = 0.313262, log(1 + e^0.5) = 0.974077, log(1 + e^2) = 2.126928
    result = replaced_token_loss(SCORES, ORIGINAL, JUDGED)
    assert float(result.loss) == pytest.approx((0.126928 + 0.313262 + 0.974077 + 2.126928) / 4, abs=ATOL)
    # the signs of the first two are right
    assert float(result.accuracy) == 0.5


def test_scores_of_zero_know_nothing():
    result = replaced_token_loss(torch.zeros(2, 3), ORIGINAL, JUDGED)
    assert float(result.loss) == pytest.approx(math.log(2), abs=ATOL)
    assert float(result.accuracy) == 0.5


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_tokens_outside_the_mask_reach_neither_value_nor_gradient(poison):
    spoiled = SCORES.masked_fill(~JUDGED, poison).requires_grad_()
    found = replaced_token_loss(spoiled, ORIGINAL, JUDGED)
    found.loss.backward()
    assert torch.equal(found.loss, replaced_token_loss(SCORES, ORIGINAL, JUDGED).loss)
    assert bool(torch.isfinite(spoiled.grad).all())
    assert bool((spoiled.grad[~JUDGED] == 0).all())


def test_one_token_is_a_pair_against_a_score_of_zero():
    # Telling h from 0 is Bradley-Terry with an opponent of score 0.
    scores = torch.tensor([[0.7], [-1.2]])
    found = replaced_token_loss(scores, torch.tensor([[True], [False]]), torch.ones(2, 1, dtype=torch.bool)).loss
    zero = torch.zeros(2)
    wanted = bradley_terry_loss(scores[:, 0], zero, torch.tensor([1.0, 0.0]), margin=None, centering=0.0).loss
    assert found.item() == pytest.approx(wanted.item(), abs=ATOL)


def test_micro_batches_add_up():
    whole = replaced_token_loss(SCORES, ORIGINAL, JUDGED)
    parts = [
        replaced_token_loss(SCORES[i : i + 1], ORIGINAL[i : i + 1], JUDGED[i : i + 1], total_tokens=4) for i in (0, 1)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    torch.testing.assert_close(sum(part.accuracy for part in parts), whole.accuracy)


def test_the_gradient_raises_originals_and_lowers_swapped():
    scores = SCORES.clone().requires_grad_()
    replaced_token_loss(scores, ORIGINAL, JUDGED).loss.backward()
    assert torch.equal(scores.grad < 0, ORIGINAL & JUDGED)
    assert torch.equal(scores.grad > 0, ~ORIGINAL & JUDGED)


def test_gradcheck():
    scores = SCORES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: replaced_token_loss(x, ORIGINAL, JUDGED).loss, (scores,))


def test_nothing_to_judge_is_zero_with_a_gradient():
    scores = SCORES.clone().requires_grad_()
    result = replaced_token_loss(scores, ORIGINAL, torch.zeros_like(JUDGED))
    result.loss.backward()
    assert float(result.loss.detach()) == 0.0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="judged"):
        replaced_token_loss(SCORES, ORIGINAL, JUDGED[:, :2])
