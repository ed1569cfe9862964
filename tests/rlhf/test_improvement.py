"""One update: which model moves, and that what is measured belongs to the right moment."""

import dataclasses
import itertools
from functools import partial

import pytest
import torch

from rlhf.batches import collate
from rlhf.engine import prepare
from rlhf.improvement import Learners, Objectives, improve
from rlhf.kl import kl_k2, kl_k3
from rlhf.losses.policy_gradient import clipped_policy_loss
from rlhf.losses.value import clipped_value_loss
from rlhf.policy_gradient_slots import AGGREGATIONS
from rlhf.reference import compare_with_reference
from rlhf.roles import load_roles
from rlhf.rollout import Rollout, sample_responses, state_values, whiten_globally
from rlhf.streams import random_source
from tests.rlhf.recipes import tiny_models as tiny


@pytest.fixture
def roles(tmp_path):
    sft = tiny.write_sft(tmp_path / "sft")
    return load_roles(sft, tiny.write_reward(tmp_path / "reward", sft), device=torch.device("cpu"))


def update(
    roles, *, train_policy=True, entropy_coef=0.0, advantage=None, steps_per_epoch=2, with_values=True,
    micro_batch=None, changed=lambda mask, old: {}, **more,
):  # fmt: skip
    batch, *_ = sample_responses(
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
    value_model = prepare(roles.value_model, **settings) if with_values else None
    learners = Learners(policy=prepare(roles.policy, **settings), value_model=value_model, train_policy=train_policy)
    return improve(
        learners, dataclasses.replace(rollout, **changed(mask, old)), dataclasses.replace(objectives, **more),
        epochs=2, minibatch=4 // steps_per_epoch, micro_batch=micro_batch, target_kl=None, order=random_source(7),
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


def test_without_a_value_model_only_the_policy_moves(roles):
    before = weights(roles.value_model)
    found = update(roles, with_values=False)
    assert same(roles.value_model, before)
    assert "value_loss" not in found
    assert found["grad_norm"] > 0


def test_tokens_outside_the_learn_mask_reach_neither_the_loss_nor_what_is_measured(roles):
    def first_row_is_nonsense(mask, old):
        kept = mask.clone()
        kept[0] = False
        noise = torch.randn(mask.shape, generator=random_source(8))
        poisoned = noise.masked_fill(mask & ~kept, torch.nan)
        return {"advantages": poisoned, "learn_mask": kept}

    found = update(roles, changed=first_row_is_nonsense, steps_per_epoch=1)
    assert found["skipped"] == 0
    assert found["idle_steps"] == 0
    assert all(value == value for value in found.values())  # no NaN


def test_a_batch_that_was_cut_whole_moves_values_and_not_the_policy(roles):
    policy, value_model = weights(roles.policy), weights(roles.value_model)
    found = update(roles, changed=lambda mask, old: {"learn_mask": torch.zeros_like(mask)})
    assert same(roles.policy, policy)
    assert not same(roles.value_model, value_model)
    assert found["idle_steps"] == 1
    assert found["policy_loss"] == 0
    assert found["ess_tokens_epoch_1"] == 0


def test_the_kl_in_the_loss_is_zero_at_the_reference_and_needs_its_log_probabilities(roles):
    def same_reference(mask, old):
        return {"ref_logprobs": old.ref_logprobs}

    found = update(roles, advantage=0.0, steps_per_epoch=1, train_policy=False, kl=kl_k2, kl_coef=5.0,
                   changed=same_reference)  # fmt: skip
    assert found["kl_loss"] == pytest.approx(0.0, abs=1e-9)
    # One nat away on every token: k3 = (e^-1 - 1) + 1 = e^-1; the loss is the price times that.
    found = update(
        roles, advantage=0.0, steps_per_epoch=1, train_policy=False, kl=kl_k3, kl_coef=5.0,
        changed=lambda mask, old: {"ref_logprobs": old.ref_logprobs - mask.float()},
    )  # fmt: skip
    assert found["kl_loss"] == pytest.approx(0.36788, abs=1e-4)
    assert found["policy_loss"] == pytest.approx(5 * 0.36788, abs=5e-4)
    with pytest.raises(ValueError, match="no ref_logprobs"):
        update(roles, kl=kl_k2, kl_coef=1.0)


def test_demonstrations_pull_the_policy_towards_them(roles):
    def parts(step):
        return [collate([[10, 11], [12]], [[20, 21], [22]], pad_id=roles.pad_id)]

    found = update(roles, advantage=0.0, ptx=parts, ptx_coef=1.0)
    again = update(roles, advantage=0.0, ptx=parts, ptx_coef=0.0)
    assert 0 < again["ptx_loss"] < found["ptx_loss"]


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_micro_batches_change_nothing_but_rounding(roles, aggregation, tmp_path):
    start = weights(roles.policy)

    def demonstrations(size, step):
        rows = [([10, 11], [20, 21]), ([12], [22]), ([13], [23, 24, 25])]
        return [
            collate([prompt for prompt, _ in part], [response for _, response in part], pad_id=roles.pad_id)
            for part in (rows[at : at + size] for at in range(0, 3, size))
        ]

    def last_token_is_masked(mask, old):
        kept = mask.clone()
        kept[-1] = False
        return {"learn_mask": kept, "ref_logprobs": old.ref_logprobs - 0.5 * mask.float()}

    results = []
    for size in (None, 1, 3):
        roles.policy.load_state_dict(start)
        found = update(
            roles, micro_batch=size, with_values=False, entropy_coef=0.1, aggregation=AGGREGATIONS[aggregation],
            longest=5.0, kl=kl_k2, kl_coef=0.5, ptx=partial(demonstrations, size or 3), ptx_coef=0.3,
            changed=last_token_is_masked,
        )  # fmt: skip
        results.append(found)
    for one, other in itertools.pairwise(results):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        for name in ("policy_loss", "kl_loss", "ptx_loss", "approx_kl_epoch_2", "ess_tokens_epoch_2"):
            assert one[name] == pytest.approx(other[name], abs=1e-4), name


def test_weights_are_even_at_first_and_uneven_later(roles):
    found = update(roles, steps_per_epoch=1)
    assert found["ess_tokens_epoch_1"] == pytest.approx(1.0, abs=1e-9)
    assert found["ess_responses_epoch_1"] == pytest.approx(1.0, abs=1e-9)
    assert found["ess_responses_epoch_2"] < 1 - 1e-6
    assert found["approx_kl_epoch_1"] == pytest.approx(0.0, abs=1e-9)
    assert found["approx_kl_epoch_2"] > 0
