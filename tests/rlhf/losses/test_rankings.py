"""The reward model's loss on rankings."""

import math
from itertools import permutations

import pytest
import torch

from rlhf.losses.bradley_terry import bradley_terry_loss
from rlhf.losses.rankings import MOST_TIED, plackett_luce_loss, ranking_pair_loss

ATOL = 1e-6
SCORES = torch.tensor([[math.log(4), math.log(2), 0.0]])
RANKS = torch.tensor([[1, 2, 3]])
ALL = torch.ones(1, 3, dtype=torch.bool)


def pairs(scores, ranks, mask=None, **changes):
    mask = torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask
    return ranking_pair_loss(scores, ranks, mask, **{"strengths": None, "centering": 0.0, **changes})


def orders(scores, ranks, mask=None, **changes):
    mask = torch.ones_like(ranks, dtype=torch.bool) if mask is None else mask
    return plackett_luce_loss(scores, ranks, mask, **{"centering": 0.0, **changes})


def test_pairs_by_hand():
    # sigma(ln 2) = 2/3 for neighbours, sigma(ln 4) = 4/5 for the ends: -(2 ln 2/3 + ln 4/5) / 3
    found = pairs(SCORES, RANKS)
    assert found.loss.item() == pytest.approx(-(2 * math.log(2 / 3) + math.log(4 / 5)) / 3, abs=ATOL)
    assert found.accuracy.item() == 1.0
    # leads ln 2, ln 2, ln 4
    assert found.margin.item() == pytest.approx(4 * math.log(2) / 3, abs=ATOL)


def test_plackett_luce_by_hand():
    # weights 4, 2, 1: the first of all 4/7, the second of the rest 2/3, the last for sure
    found = orders(SCORES, RANKS)
    assert found.loss.item() == pytest.approx(-math.log(4 / 7) - math.log(2 / 3), abs=ATOL)
    # the worst first: 1/7, then 2 among 6
    reverse = orders(SCORES, torch.tensor([[3, 2, 1]]))
    assert reverse.loss.item() == pytest.approx(-math.log(1 / 7) - math.log(2 / 6), abs=ATOL)
    assert reverse.accuracy.item() == 0.0


def test_accuracy_counts_decided_pairs_of_each_ranking():
    # 1 before 2 is right, 2 before 3 wrong, 1 before 3 equal: 1.5 of 3; the second ranking is one tie and has no say
    scores = torch.tensor([[1.0, 0.0, 1.0], [3.0, 2.0, 1.0]])
    ranks = torch.tensor([[1, 2, 3], [1, 1, 1]])
    assert pairs(scores, ranks).accuracy.item() == pytest.approx(0.5)
    assert pairs(scores[1:], ranks[1:]).accuracy.item() == 0.5


@pytest.mark.parametrize("label", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("loss", [pairs, orders])
def test_a_ranking_of_two_is_a_pair(loss, label):
    scores = torch.tensor([[0.7, -0.4], [-1.0, 2.0]])
    ranks = {1.0: [1, 2], 0.5: [1, 1], 0.0: [2, 1]}[label]
    pair = bradley_terry_loss(
        scores[:, 0], scores[:, 1], torch.full((2,), label), margin=None, centering=0.01, total_pairs=5
    )
    found = loss(scores, torch.tensor([ranks] * 2), centering=0.01, total_rankings=5)
    torch.testing.assert_close(found.loss, pair.loss, atol=ATOL, rtol=0)
    assert found.accuracy == pair.accuracy
    if loss is pairs:
        assert torch.equal(found.loss, pair.loss)


@pytest.mark.parametrize("ranks", [(1, 1, 2), (1, 2, 2), (1, 1, 1), (2, 1, 2, 1), (1, 2, 2, 2, 3)])
def test_tied_answers_take_the_mean_over_their_orders(ranks):
    scores = torch.randn(1, len(ranks), generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def likelihood(order):
        left, total = list(order), 0.0
        for index in order:
            total += float(scores[0, index] - scores[0, left].logsumexp(0))
            left.remove(index)
        return total

    kept = [order for order in permutations(range(len(ranks))) if [ranks[i] for i in order] == sorted(ranks)]
    expected = -sum(map(likelihood, kept)) / len(kept)
    assert orders(scores, torch.tensor([ranks])).loss.item() == pytest.approx(expected, abs=1e-10)


def test_a_tie_is_best_at_equal_scores():
    for loss in (pairs, orders):
        scores = torch.tensor([[2.0, 1.0]], requires_grad=True)
        loss(scores, torch.tensor([[1, 1]])).loss.backward()
        # sigma(1) - 1/2: the higher is pulled down, the lower up
        force = 1 / (1 + math.exp(-1)) - 0.5
        torch.testing.assert_close(scores.grad, torch.tensor([[force, -force]]), atol=ATOL, rtol=0)


def test_margins_by_hand():
    # strengths 3, 1 and 1: margins 2, 2 and 0; sigma(ln 2 - 2), sigma(ln 4 - 2), sigma(ln 2)
    strengths = torch.tensor([[3.0, 1.0, 1.0]])
    found = pairs(SCORES, RANKS, strengths=strengths).loss.item()
    terms = (math.log(2) - 2, math.log(4) - 2, math.log(2))
    assert found == pytest.approx(sum(math.log1p(math.exp(-x)) for x in terms) / 3, abs=ATOL)
    # the strengths are with their answers, whatever the order they stand in
    flipped = pairs(SCORES.flip(1), RANKS.flip(1), strengths=strengths.flip(1)).loss.item()
    assert flipped == pytest.approx(found, abs=ATOL)
    # strengths against the ranks are no margin
    assert pairs(SCORES, RANKS, strengths=-strengths).loss.item() == pytest.approx(pairs(SCORES, RANKS).loss.item())


def test_centring_by_hand():
    for loss in (pairs, orders):
        # sums ln 8, ln 4, ln 2 = 3, 2, 1 times ln 2
        added = loss(SCORES, RANKS, centering=0.01).loss - loss(SCORES, RANKS).loss
        assert added.item() == pytest.approx(0.01 * (9 + 4 + 1) * math.log(2) ** 2 / 3, abs=ATOL)
        assert loss(SCORES + 5, RANKS).loss.item() == pytest.approx(loss(SCORES, RANKS).loss.item(), abs=ATOL)


def ragged():
    """Rankings of 2, 4 and 3 answers, with ties."""
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ranks = torch.tensor([[1, 2, 0, 0], [2, 1, 2, 3], [1, 2, 3, 0]])
    mask = torch.arange(4) < torch.tensor([[2], [4], [3]])
    return scores, ranks, mask


@pytest.mark.parametrize("loss", [pairs, orders])
def test_what_is_under_the_mask_does_not_matter(loss):
    scores, ranks, mask = ragged()
    strengths = {"strengths": scores.masked_fill(~mask, torch.nan)} if loss is pairs else {}
    filled = scores.masked_fill(~mask, torch.nan).requires_grad_()
    found = loss(filled, ranks.masked_fill(~mask, 7), mask, centering=0.1, **strengths)
    found.loss.backward()
    assert not filled.grad[~mask].any()
    assert filled.grad.isfinite().all()
    kept = {"strengths": scores} if loss is pairs else {}
    expected = loss(scores, ranks, mask, centering=0.1, **kept)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("loss", [pairs, orders])
def test_micro_batches_add_up_and_padding_adds_nothing(loss):
    scores, ranks, mask = ragged()
    whole = loss(scores, ranks, mask, centering=0.1)
    parts = [
        loss(scores[row : row + 1, :width], ranks[row : row + 1, :width], centering=0.1, total_rankings=3)
        for row, width in enumerate((2, 4, 3))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    torch.testing.assert_close(sum(part.margin for part in parts), whole.margin)


@pytest.mark.parametrize("loss", [pairs, orders])
def test_the_order_in_which_answers_stand_does_not_matter(loss):
    scores, ranks, mask = ragged()
    other = [2, 0, 3, 1]
    moved = loss(scores[:, other], ranks[:, other], mask[:, other], centering=0.1)
    torch.testing.assert_close(moved.loss, loss(scores, ranks, mask, centering=0.1).loss)


@pytest.mark.parametrize("loss", [pairs, orders])
def test_gradcheck(loss):
    scores, ranks, mask = ragged()
    assert torch.autograd.gradcheck(lambda s: loss(s, ranks, mask, centering=0.1).loss, (scores.requires_grad_(),))


def test_scores_are_lifted_to_float32():
    for loss in (pairs, orders):
        assert loss(SCORES.bfloat16(), RANKS).loss.dtype == torch.float32


def test_bad_input_is_refused():
    for loss in (pairs, orders):
        with pytest.raises(ValueError, match="ranks has shape"):
            loss(SCORES, RANKS[:, :2], ALL)
        with pytest.raises(ValueError, match="must have 2 dimensions"):
            loss(SCORES[0], RANKS[0], ALL[0])
        with pytest.raises(ValueError, match="fewer than two answers"):
            loss(SCORES, RANKS, torch.tensor([[True, False, False]]))
        with pytest.raises(ValueError, match="centering is -1"):
            loss(SCORES, RANKS, centering=-1.0)
    with pytest.raises(ValueError, match="strengths has shape"):
        pairs(SCORES, RANKS, strengths=torch.zeros(1, 2))
    many = MOST_TIED + 1
    with pytest.raises(ValueError, match="11 answers are on one place, wanted 10"):
        orders(torch.zeros(1, many), torch.ones(1, many, dtype=torch.int64))
