"""The slots: each name computes what it says, and every combination is independent of how a batch is cut."""

import dataclasses
import itertools

import pytest
import torch

from rlhf.advantages import gae, rewards_to_go
from rlhf.masking import masked_whiten
from rlhf.policy_gradient_slots import ADVANTAGES, AGGREGATIONS, OBJECTIVES, Totals, cautions, estimate
from tests.rlhf.recipes.tiny_ppo import CONFIG

ATOL = 1e-6
# Four responses to two prompts, in the order of their lengths: places 2, 0, 3, 1. A prompt token, then up to three.
MASK = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 1]]).bool()
REWARDS = torch.tensor([[0.0, 4, 0, 0], [0, -1, 2, 0], [0, 0, 2, 0], [0, 1, 1, 3.0]])
VALUES = torch.tensor([[0.0, 1, 0, 0], [0, 1, 2, 0], [0, 0.5, 1, 0], [0, 2, 2, 2.0]])
PLACE = torch.tensor([2, 0, 3, 1])


def found(**changes):
    config = dataclasses.replace(CONFIG, rollouts=4, minibatch=4, **changes)
    return estimate(config, rewards=REWARDS, values=VALUES, mask=MASK, place=PLACE)


def test_every_estimator_by_hand():
    # Totals of the rows: 4, 1, 2, 5. Reward to go of the last row: 5, 4, 3.
    rows = found(advantage="reward_to_go").advantages
    assert rows.tolist() == [[0, 4, 0, 0], [0, 1, 2, 0], [0, 2, 2, 0], [0, 5, 4, 3]]
    rows = found(advantage="full_return").advantages
    assert rows.tolist() == [[0, 4, 0, 0], [0, 1, 1, 0], [0, 2, 2, 0], [0, 5, 5, 5]]
    # The mean return is 3.
    less = found(advantage="reward_to_go", baseline="mean").advantages
    assert less.tolist() == [[0, 1, 0, 0], [0, -2, -1, 0], [0, -1, -1, 0], [0, 2, 1, 0]]
    # Less the values.
    less = found(advantage="reward_to_go", baseline="value").advantages
    assert less.tolist() == [[0, 3, 0, 0], [0, 0, 0, 0], [0, 1.5, 1, 0], [0, 3, 2, 1]]


def test_groups_stay_together_whatever_the_order_of_rows():
    # The first prompt has places 0 and 1: returns 1 and 5. The second 2 and 3: 4 and 2.
    rows = found(advantage="leave_one_out", group_size=2).advantages
    assert rows.tolist() == [[0, 2, 0, 0], [0, -4, -4, 0], [0, -2, -2, 0], [0, 4, 4, 4]]
    rows = found(advantage="group_centred", group_size=2).advantages
    assert rows.tolist() == [[0, 1, 0, 0], [0, -2, -2, 0], [0, -1, -1, 0], [0, 2, 2, 2]]
    # The spread of 1 and 5 is sqrt(8), that of 4 and 2 sqrt(2): all are +- 1 / sqrt(2).
    rows = found(advantage="group_relative", group_size=2).advantages
    assert rows[:, 1].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5), -(0.5**0.5), 0.5**0.5], abs=1e-5)


def test_actor_critic_is_gae_with_lambda_1():
    wanted, returns = gae(REWARDS, VALUES, MASK, gamma=1.0, gae_lambda=1.0)
    actor_critic = found(advantage="reward_to_go", baseline="value")
    assert torch.allclose(actor_critic.advantages, wanted, atol=ATOL)
    assert torch.allclose(actor_critic.returns, returns, atol=ATOL)


def test_whitening_makes_the_mean_baseline_superfluous():
    with_mean, without = (found(advantage="reward_to_go", baseline=name).advantages for name in ("mean", "none"))
    assert torch.allclose(masked_whiten(with_mean, MASK), masked_whiten(without, MASK), atol=1e-5)


def test_value_targets_are_returns_without_the_baseline():
    wanted = rewards_to_go(REWARDS, MASK, gamma=1.0)
    for advantage, baseline in (("full_return", "value"), ("reward_to_go", "mean")):
        assert torch.equal(found(advantage=advantage, baseline=baseline).returns, wanted)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_nothing_under_the_mask_is_read(name):
    config = dataclasses.replace(CONFIG, rollouts=4, minibatch=4, advantage=name, group_size=2)
    clean = estimate(config, rewards=REWARDS, values=VALUES, mask=MASK, place=PLACE)
    rewards, values = torch.where(MASK, REWARDS, torch.nan), torch.where(MASK, VALUES, torch.inf)
    poisoned = estimate(config, rewards=rewards, values=values, mask=MASK, place=PLACE)
    assert torch.equal(clean.advantages, poisoned.advantages)
    assert torch.equal(clean.returns, poisoned.returns)
    assert bool((clean.advantages[~MASK] == 0).all())


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_teach_nothing_and_nothing_is_nan(name):
    baseline = "mean" if name in ("reward_to_go", "full_return") else "none"
    config = dataclasses.replace(
        CONFIG, rollouts=4, minibatch=4, advantage=name, group_size=2, baseline=baseline, gae_lambda=1.0
    )
    rewards = torch.zeros(4, 4)
    rewards[range(4), [1, 2, 2, 3]] = 0.1
    values = torch.where(MASK, 0.1, 0.0)
    advantages, _ = estimate(config, rewards=rewards, values=values, mask=MASK, place=PLACE)
    assert advantages.abs().max() <= 1e-7
    assert masked_whiten(advantages, MASK).abs().max() <= 1e-3


def test_a_group_that_does_not_divide_the_batch_is_refused():
    config = dataclasses.replace(CONFIG, advantage="leave_one_out", group_size=4)
    with pytest.raises(ValueError, match=r"scores has shape \(3,\) but groups of 4 were wanted"):
        estimate(config, rewards=REWARDS[:3], values=VALUES[:3], mask=MASK[:3], place=PLACE[:3])


def parts_of(count):
    return [slice(start, start + count) for start in range(0, 4, count)]


@pytest.mark.parametrize(("objective", "aggregation"), list(itertools.product(OBJECTIVES, AGGREGATIONS)))
def test_micro_batches_add_up_for_every_objective_and_aggregation(objective, aggregation):
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 4, generator=generator, dtype=torch.float64)
    start = old + 0.4 * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    advantages = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    mask = MASK.clone()
    mask[2] = False  # a response that was cut
    config = dataclasses.replace(CONFIG, objective=objective, rollouts=8)
    loss = OBJECTIVES[objective](config, 0.5)
    totals = Totals(float(mask.sum()), float(mask.any(dim=1).sum()), 6.0)
    results = []
    for size in (4, 1, 2):
        logprobs = start.clone().requires_grad_()
        value = torch.zeros((), dtype=torch.float64)
        for rows in parts_of(size):
            value = value + loss(
                logprobs[rows], old[rows], advantages[rows], mask[rows], total_tokens=totals.tokens,
                aggregate=lambda tokens, where: AGGREGATIONS[aggregation](tokens, where, totals),
            ).loss  # fmt: skip
        value.backward()
        results.append((value.detach(), logprobs.grad))
    for value, gradient in results[1:]:
        assert torch.allclose(value, results[0][0], atol=1e-12)
        assert torch.allclose(gradient, results[0][1], atol=1e-12)
    assert bool((results[0][1][~mask] == 0).all())


def test_aggregations_by_hand():
    loss = torch.where(MASK, REWARDS, torch.nan)
    totals = Totals(8.0, 4.0, 6.0)
    # Sums of the rows: 4, 1, 2, 5; lengths 1, 2, 2, 3.
    assert AGGREGATIONS["token_mean"](loss, MASK, totals).item() == pytest.approx(12 / 8)
    assert AGGREGATIONS["sequence_mean"](loss, MASK, totals).item() == pytest.approx((4 + 0.5 + 1 + 5 / 3) / 4)
    assert AGGREGATIONS["sequence_sum"](loss, MASK, totals).item() == pytest.approx(12 / (6 * 4))


def test_settings_reach_the_objectives():
    old = torch.zeros(1, 1, dtype=torch.float64)
    ones, mask = torch.ones_like(old), torch.ones(1, 1, dtype=torch.bool)

    def loss(ratio, advantage, coef=0.0, **changes):
        config = dataclasses.replace(CONFIG, **changes)
        objective = OBJECTIVES[config.objective](config, coef)
        logprobs = old + torch.tensor(ratio).log()
        return objective(logprobs, old, advantage * ones, mask, total_tokens=1.0, aggregate=None).loss.item()

    assert loss(1.5, 1.0) == pytest.approx(-1.2, abs=ATOL)
    assert loss(1.5, 1.0, clip_range_high=0.28) == pytest.approx(-1.28, abs=ATOL)
    assert loss(0.5, -1.0, clip_range_high=0.28) == pytest.approx(0.8, abs=ATOL)
    assert loss(9.0, -1.0, dual_clip=3.0) == pytest.approx(3.0, abs=ATOL)
    assert loss(1.5, 1.0, objective="importance_sampled") == pytest.approx(-1.5, abs=ATOL)
    assert loss(1.5, 1.0, objective="reinforce") == pytest.approx(-0.405465, abs=ATOL)
    # (0.5 - ln 1.5) = 0.094535
    assert loss(1.5, 1.0, 2.0, objective="penalised") == pytest.approx(-1.5 + 2 * 0.094535, abs=ATOL)
    assert loss(1.5, 1.0, 2.0, objective="clipped_penalised") == pytest.approx(-1.2 + 2 * 0.094535, abs=ATOL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl_estimator": "k3"}, "k3 in the reward changes what is optimised"),
        ({"kl_estimator": "k3", "kl_place": "loss"}, "k3 in the loss is GRPO's choice"),
        ({"objective": "reinforce"}, "several steps on one batch"),
        ({"advantage": "group_relative", "group_size": 2}, "whiten does it once more"),
        ({"objective": "penalised", "step_kl_coef": 0.0}, "has no penalty"),
    ],
)
def test_what_runs_but_is_doubtful_is_said(changes, words):
    (sentence,) = cautions(dataclasses.replace(CONFIG, **changes))
    assert words in sentence


def test_the_default_and_the_right_estimators_are_not_warned_of():
    assert cautions(CONFIG) == []
    assert cautions(dataclasses.replace(CONFIG, kl_place="loss", kl_estimator="k2")) == []
    assert cautions(dataclasses.replace(CONFIG, objective="reinforce", epochs=1, minibatch=8)) == []
