"""Rewards, returns and advantages worked by hand on three tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlhf.advantages import (
    all_equal,
    full_return,
    gae,
    group_relative,
    in_groups,
    leave_one_out,
    overlong_price,
    rewards_to_go,
    shape_rewards,
)
from rlhf.kl import kl_k2, kl_k3

ATOL = 1e-6
# A prompt token, three response tokens with a hole (a tool's token, say) between them, and a pad.
MASK = torch.tensor([[False, True, False, True, True, False]])
REWARDS = torch.tensor([[0.0, 1.0, 0.0, 2.0, 4.0, 0.0]])
VALUES = torch.tensor([[0.0, 0.5, 0.0, 1.0, 2.0, 0.0]])


def poisoned(x: Tensor) -> Tensor:
    return torch.where(MASK, x, math.nan)


def test_gae_by_hand() -> None:
    # gamma 0.9, lambda 0.5:  delta3 = 4 + 0 - 2 = 2;  delta2 = 2 + 0.9*2 - 1 = 2.8;  delta1 = 1 + 0.9*1 - 0.5 = 1.4
    # A3 = 2;  A2 = 2.8 + 0.45*2 = 3.7;  A1 = 1.4 + 0.45*3.7 = 3.065
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.9, gae_lambda=0.5)
    assert advantages[MASK].tolist() == pytest.approx([3.065, 3.7, 2.0], abs=ATOL)
    assert returns[MASK].tolist() == pytest.approx([3.565, 4.7, 4.0], abs=ATOL)
    assert bool((advantages[~MASK] == 0).all())
    assert bool((returns[~MASK] == 0).all())


def test_gae_with_lambda_0_is_the_td_error() -> None:
    advantages, _ = gae(REWARDS, VALUES, MASK, gamma=0.9, gae_lambda=0.0)
    assert advantages[MASK].tolist() == pytest.approx([1.4, 2.8, 2.0], abs=ATOL)


def test_gae_with_lambda_1_is_return_minus_value() -> None:
    # G3 = 4; G2 = 2 + 0.9*4 = 5.6; G1 = 1 + 0.9*5.6 = 6.04
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.9, gae_lambda=1.0)
    assert returns[MASK].tolist() == pytest.approx([6.04, 5.6, 4.0], abs=ATOL)
    assert advantages[MASK].tolist() == pytest.approx([5.54, 4.6, 2.0], abs=ATOL)
    assert torch.allclose(returns, rewards_to_go(REWARDS, MASK, gamma=0.9), atol=ATOL)


def test_gae_telescopes_at_lambda_1_only() -> None:
    # One reward R = 1 at the last of three tokens, gamma 1, all values 0.5. Telescoped, A1 would be R - V = 0.5.
    rewards, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    values = torch.full((1, 3), 0.5)
    at_one, _ = gae(rewards, values, mask, gamma=1.0, gae_lambda=1.0)
    assert at_one[0, 0].item() == pytest.approx(0.5, abs=ATOL)
    # deltas 0, 0, 0.5; lambda 0.9: A1 = 0.81 * 0.5 = 0.405
    below, _ = gae(rewards, values, mask, gamma=1.0, gae_lambda=0.9)
    assert below[0, 0].item() == pytest.approx(0.405, abs=ATOL)


def test_gamma_belongs_into_the_sum_of_gae() -> None:
    # With lambda 1 but gamma 0.5 the weights of the deltas are gamma^l: deltas (0.25-0.5, 0.25-0.5, 1-0.5).
    rewards, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    advantages, _ = gae(rewards, torch.full((1, 3), 0.5), mask, gamma=0.5, gae_lambda=1.0)
    # -0.25 + 0.5*(-0.25) + 0.25*0.5 = -0.25; without gamma in the sum it would be -0.25 - 0.25 + 0.5 = 0
    assert advantages[0, 0].item() == pytest.approx(-0.25, abs=ATOL)


def test_the_score_after_the_end_token_would_be_bootstrapped_through_the_value_of_a_pad() -> None:
    # At the end token, lambda 0.95, gamma 1, score 2, V(eos) 0.6: on the token itself A = 2 - 0.6 = 1.4.
    score, mask = torch.tensor([2.0]), torch.tensor([[True, False]])
    nothing = torch.zeros(1, 2)
    rewards = shape_rewards(score, nothing, nothing, mask, kl_coef=0.0)
    advantages, _ = gae(rewards, torch.tensor([[0.6, 0.0]]), mask, gamma=1.0, gae_lambda=0.95)
    assert advantages[0, 0].item() == pytest.approx(1.4, abs=ATOL)
    # One slot later, with V(pad) = 0: delta = 0 + 0 - 0.6, next advantage 2: -0.6 + 0.95 * 2 = 1.3.
    late, _ = gae(
        torch.tensor([[0.0, 2.0]]), torch.tensor([[0.6, 0.0]]), torch.ones_like(mask), gamma=1.0, gae_lambda=0.95
    )
    assert late[0, 0].item() == pytest.approx(1.3, abs=ATOL)


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_holes_and_padding_do_not_exist_for_gae(seed: int, gamma: float, gae_lambda: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(1, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.zeros(1, 9, dtype=torch.bool)
    mask[0, torch.randperm(9, generator=generator)[:4]] = True
    wide_rewards, wide_values = (torch.full((1, 9), math.nan, dtype=torch.float64) for _ in range(2))
    wide_rewards[mask], wide_values[mask] = rewards[0], values[0]
    wide = gae(wide_rewards, wide_values, mask, gamma=gamma, gae_lambda=gae_lambda)
    dense = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), gamma=gamma, gae_lambda=gae_lambda)
    for found, wanted in zip(wide, dense, strict=True):
        assert torch.allclose(found[mask], wanted[0], atol=1e-12)


def test_rewards_to_go_and_full_return_by_hand() -> None:
    # 1 + 0.5 * 4; 2 + 0.5 * 4; 4
    assert rewards_to_go(REWARDS, MASK, gamma=0.5)[MASK].tolist() == pytest.approx([3.0, 4.0, 4.0])
    # 1 + 0.5 * 2 + 0.25 * 4 = 3 on every token
    assert full_return(REWARDS, MASK, gamma=0.5)[MASK].tolist() == pytest.approx([3.0, 3.0, 3.0])
    assert full_return(REWARDS, MASK, gamma=0.0)[MASK].tolist() == [1.0, 1.0, 1.0]


def test_full_return_is_the_reward_to_go_of_the_first_token() -> None:
    first = rewards_to_go(REWARDS, MASK, gamma=0.7)[0, 1]
    assert torch.allclose(full_return(REWARDS, MASK, gamma=0.7)[MASK], first.expand(3), atol=ATOL)


def test_shape_rewards_by_hand() -> None:
    logprobs = torch.tensor([[9.0, -1.0, 9.0, -2.0, -0.5, 9.0]])
    ref_logprobs = torch.tensor([[0.0, -1.5, 0.0, -1.0, -0.5, 0.0]])
    rewards = shape_rewards(torch.tensor([3.0]), logprobs, ref_logprobs, MASK, kl_coef=0.1)
    # k1 = 0.5, -1, 0; times -0.1: -0.05, 0.1, 0; the score joins the last of them
    assert rewards[MASK].tolist() == pytest.approx([-0.05, 0.1, 3.0], abs=ATOL)
    assert bool((rewards[~MASK] == 0).all())


def test_the_sum_of_token_rewards_is_score_minus_kl_of_the_response() -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs, ref_logprobs = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, True, True]])
    score = torch.tensor([1.0, -2.0])
    rewards = shape_rewards(score, logprobs, ref_logprobs, mask, kl_coef=0.3)
    kl = ((logprobs - ref_logprobs) * mask).sum(dim=1)
    assert torch.allclose(rewards.sum(dim=1), score - 0.3 * kl, atol=ATOL)


def test_nothing_under_the_mask_is_read() -> None:
    assert torch.equal(
        shape_rewards(torch.tensor([3.0]), poisoned(REWARDS), poisoned(VALUES), MASK, kl_coef=0.1),
        shape_rewards(torch.tensor([3.0]), REWARDS, VALUES, MASK, kl_coef=0.1),
    )
    assert torch.equal(rewards_to_go(poisoned(REWARDS), MASK, gamma=0.9), rewards_to_go(REWARDS, MASK, gamma=0.9))
    assert torch.equal(full_return(poisoned(REWARDS), MASK, gamma=0.9), full_return(REWARDS, MASK, gamma=0.9))


def test_no_gradient_passes() -> None:
    values = VALUES.clone().requires_grad_()
    advantages, returns = gae(REWARDS, values, MASK, gamma=1.0, gae_lambda=0.95)
    rewards = shape_rewards(torch.ones(1, requires_grad=True), values, REWARDS, MASK, kl_coef=0.1)
    assert not any(tensor.requires_grad for tensor in (advantages, returns, rewards))


def test_rows_do_not_touch_each_other() -> None:
    both = gae(REWARDS.repeat(2, 1), torch.cat([VALUES, 7 * VALUES]), MASK.repeat(2, 1), gamma=0.9, gae_lambda=0.5)
    alone = gae(REWARDS, VALUES, MASK, gamma=0.9, gae_lambda=0.5)
    assert torch.equal(both[0][:1], alone[0])


def test_leave_one_out_by_hand() -> None:
    # others of 1: (2 + 6) / 2 = 4 -> -3;  of 2: 3.5 -> -1.5;  of 6: 1.5 -> 4.5
    assert leave_one_out(torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [pytest.approx([-3.0, -1.5, 4.5], abs=ATOL)]
    # Two samples: plus and minus their difference.
    assert leave_one_out(torch.tensor([[1.0, 4.0]])).tolist() == [pytest.approx([-3.0, 3.0], abs=ATOL)]


def test_group_relative_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    assert group_relative(scores, divide_by_std=False).tolist() == [
        pytest.approx([-2.0, -1.0, 3.0], abs=ATOL),
        [0, 0, 0],
    ]
    # variance (4 + 1 + 9) / 2 = 7
    wanted = [-2 / math.sqrt(7), -1 / math.sqrt(7), 3 / math.sqrt(7)]
    assert group_relative(scores, divide_by_std=True).tolist() == [pytest.approx(wanted, abs=1e-5), [0, 0, 0]]


def test_a_group_of_equal_scores_that_round_badly_still_gives_zero() -> None:
    assert group_relative(torch.full((1, 7), 0.1), divide_by_std=True).tolist() == [[0] * 7]


def test_leave_one_out_is_the_centred_score_times_n_over_n_minus_1() -> None:
    scores = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(leave_one_out(scores), group_relative(scores, divide_by_std=False) * 4 / 3, atol=ATOL)


def test_bad_shapes_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"score has shape \(1, 6\) but logprobs have \(1, 6\)"):
        shape_rewards(torch.zeros(1, 6), REWARDS, VALUES, MASK, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"values has shape \(1, 5\) but token_rewards has \(1, 6\)"):
        gae(REWARDS, VALUES[:, 1:], MASK, gamma=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match=r"gae_lambda is 1\.5"):
        gae(REWARDS, VALUES, MASK, gamma=1.0, gae_lambda=1.5)
    with pytest.raises(ValueError, match="gamma is -1"):
        rewards_to_go(REWARDS, MASK, gamma=-1)
    with pytest.raises(ValueError, match=r"scores has shape \(2, 1\) but a group needs at least two"):
        leave_one_out(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="has no True position"):
        shape_rewards(torch.zeros(1), REWARDS, VALUES, torch.zeros_like(MASK), kl_coef=0.1)


def test_equal_scores_that_round_badly_leave_nothing_to_any_group_method() -> None:
    scores = torch.full((2, 7), 0.1)
    assert leave_one_out(scores).tolist() == [[0] * 7] * 2
    assert all_equal(torch.tensor([[1.0, 1.0], [1.0, 2.0]])).tolist() == [True, False]


def test_groups_are_found_by_place() -> None:
    # In the order of asking: 1, 2 | 5, 9. Each less the mean of its group: -0.5, 0.5 | -2, 2.
    scores, place = torch.tensor([9.0, 1.0, 5.0, 2.0]), torch.tensor([3, 0, 2, 1])

    def centred(groups: Tensor) -> Tensor:
        return group_relative(groups, divide_by_std=False)

    assert in_groups(centred, scores, place, size=2).tolist() == [2, -0.5, -2, 0.5]
    order = torch.tensor([2, 0, 3, 1])
    assert in_groups(centred, scores[order], place[order], size=2).tolist() == [-2, 2, 0.5, -0.5]
    assert in_groups(lambda groups: groups, scores, place, size=4).tolist() == scores.tolist()


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores has shape \(3,\) but groups of 2"):
        in_groups(lambda groups: groups, torch.zeros(3), torch.arange(3), size=2)
    with pytest.raises(ValueError, match="place has shape"):
        in_groups(lambda groups: groups, torch.zeros(4), torch.arange(3), size=2)


def test_the_price_of_length_by_hand() -> None:
    # Longest 10, buffer 4: nothing up to 6, half of it at 8, all of it at 10.
    price = overlong_price(torch.tensor([1, 6, 7, 8, 10]), longest=10, buffer=4, penalty=2.0)
    assert price.tolist() == pytest.approx([0, 0, 0.5, 1.0, 2.0], abs=ATOL)
    assert overlong_price(torch.tensor([9, 10]), longest=10, buffer=1, penalty=1.0).tolist() == [0, 1]
    with pytest.raises(ValueError, match="buffer is 11 but must lie between 1 and longest = 10"):
        overlong_price(torch.tensor([1]), longest=10, buffer=11, penalty=1.0)
    with pytest.raises(ValueError, match="buffer is 0"):
        overlong_price(torch.tensor([1]), longest=10, buffer=0, penalty=1.0)


def test_other_estimators_can_be_charged() -> None:
    logprobs, ref_logprobs = torch.full((1, 6), -1.0), torch.full((1, 6), -2.0)
    score = torch.zeros(1)
    # One nat apart: k2 = 1/2, k3 = e^-1 - 1 + 1
    for estimator, wanted in ((kl_k2, 0.5), (kl_k3, math.exp(-1))):
        rewards = shape_rewards(score, logprobs, ref_logprobs, MASK, kl_coef=2.0, estimator=estimator)
        assert rewards[MASK].tolist() == pytest.approx([-2 * wanted] * 3, abs=ATOL)
        assert bool((rewards[~MASK] == 0).all())
