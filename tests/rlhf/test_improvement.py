"""One update: which model moves, and that what is measured belongs to the right moment."""

from functools import partial

import pytest
import torch

from rlhf.engine import prepare
from rlhf.improvement import Objectives, improve
from rlhf.losses.policy_gradient import clipped_policy_loss
from rlhf.losses.value import clipped_value_loss
from rlhf.reference import compare_with_reference
from rlhf.roles import load_roles
from rlhf.rollout import Rollout, sample_responses, state_values, whiten_globally
from rlhf.streams import random_source
from tests.rlhf.recipes import tiny_models as tiny


@pytest.fixture
def roles(tmp_path):
    sft = tiny.write_sft(tmp_path / "sft")
    return load_roles(sft, tiny.write_reward(tmp_path / "reward", sft), device=torch.device("cpu"))


def update(roles, *, train_policy=True, entropy_coef=0.0, advantage=None, steps_per_epoch=2):
    batch, _, _ = sample_responses(
        roles.policy, [[10, 11], [12], [13, 14, 15], [16]], max_new_tokens=5, temperature=1.0, stops=roles.stops,
        forbidden=roles.forbidden, pad_id=roles.pad_id, source=random_source(5),
    )  # fmt: skip
    old = compare_with_reference(roles.policy, roles.reference, batch, roles.forbidden, temperature=1.0, rows=4)
    mask = batch.response_mask
    noise = torch.randn(mask.shape, generator=random_source(6))
    rollout = Rollout(
        batch=batch, logprobs=old.logprobs, values=state_values(roles.value_model, batch).detach(),
        advantages=whiten_globally(noise, mask) if advantage is None else torch.full(mask.shape, advantage),
        returns=noise * mask,
    )  # fmt: skip
    settings = {"schedule": lambda _: 1.0, "max_grad_norm": 1.0, "precision": "float32", "learning_rate": 1e-2}
    objectives = Objectives(
        policy=partial(clipped_policy_loss, clip_range_low=0.2, clip_range_high=0.2, dual_clip=None),
        value=partial(clipped_value_loss, clip_range=None), entropy_coef=entropy_coef, temperature=1.0,
        forbidden=roles.forbidden, precision="float32",
    )  # fmt: skip
    return improve(
        prepare(roles.policy, **settings), prepare(roles.value_model, **settings), rollout, objectives,
        epochs=2, minibatch=4 // steps_per_epoch, micro_batch=None, target_kl=None, order=random_source(7),
        train_policy=train_policy,
    )  # fmt: skip


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_both_models_move_and_the_frozen_ones_do_not(roles):
    trained = [(model, weights(model)) for model in (roles.policy, roles.value_model)]
    frozen = [(model, weights(model)) for model in (roles.reference, roles.reward_model)]
    found = update(roles)
    assert not any(same(*pair) for pair in trained)
    assert all(same(*pair) for pair in frozen)
    assert found["steps"] == 4
    assert found["skipped"] == 0
    assert found["first_ratio"] < 5e-6
    assert found["approx_kl"] > 0


def test_only_the_value_model_moves_while_it_warms_up(roles):
    policy, value_model = weights(roles.policy), weights(roles.value_model)
    found = update(roles, train_policy=False)
    assert same(roles.policy, policy)
    assert not same(roles.value_model, value_model)
    assert found["approx_kl"] == pytest.approx(0.0, abs=1e-6)


def test_with_equal_advantages_the_first_policy_loss_is_their_negative(roles):
    found = update(roles, advantage=0.25, train_policy=False, steps_per_epoch=1)
    assert found["policy_loss"] == pytest.approx(-0.25, abs=1e-6)


def test_the_entropy_bonus_is_subtracted(roles):
    # The letters and the end token share nearly all probability, so the entropy lies between 1 nat and ln 262 = 5.57.
    found = update(roles, advantage=0.0, train_policy=False, entropy_coef=2.0)
    assert -2 * 5.57 < found["policy_loss"] < -2
