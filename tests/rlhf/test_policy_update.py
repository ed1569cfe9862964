"""Who takes the step of an update, and that the settings reach what is minimised."""

import dataclasses

import pytest
import torch

from rlhf.engine import prepare
from rlhf.improvement import Learners
from rlhf.kl import kl_k2
from rlhf.policy_gradient_slots import AGGREGATIONS
from rlhf.policy_update import make_objectives, take_steps
from rlhf.reference import compare_with_reference
from rlhf.roles import load_roles
from rlhf.rollout import Rollout, sample_responses, whiten_globally
from rlhf.streams import random_source
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_ppo import CONFIG

FORBIDDEN = torch.zeros(3, dtype=torch.bool)


def objectives(config, **changes):
    settings = {"ptx": None, "update": 0, "kl_coef": 0.7, "step_kl_coef": 0.5, **changes}
    return make_objectives(config, FORBIDDEN, **settings)


def test_the_kl_is_part_of_the_loss_only_where_it_is_asked_for():
    assert objectives(CONFIG).kl is None
    inside = dataclasses.replace(CONFIG, kl_place="loss", kl_estimator="k2")
    assert objectives(inside).kl is kl_k2
    assert objectives(inside).kl_coef == 0.7
    assert objectives(dataclasses.replace(inside, kl_coef=0.0)).kl is None


def test_settings_reach_what_is_minimised():
    config = dataclasses.replace(CONFIG, aggregation="sequence_sum", entropy_coef=0.1, value_coef=0.3, ptx_coef=0.2)
    found = objectives(config)
    assert found.aggregation is AGGREGATIONS["sequence_sum"]
    assert (found.longest, found.entropy_coef, found.value_coef, found.ptx_coef) == (6, 0.1, 0.3, 0.2)
    ones = torch.ones(1, 1)
    price = objectives(dataclasses.replace(CONFIG, objective="penalised")).policy
    # A = 0, r = 2: half a nat's price of (1 - ln 2)
    loss = price(ones * 2.0, ones, 0 * ones, ones.bool(), total_tokens=1.0, aggregate=None).loss
    assert loss.item() == pytest.approx(0.5 * (torch.e - 2), abs=1e-5)


def test_demonstrations_follow_the_steps_of_the_whole_run():
    class Stream:
        def parts(self, step):
            return [step]

    ptx = objectives(CONFIG, ptx=Stream(), update=3).ptx
    # Two epochs of two minibatches are four steps of an update.
    assert [ptx(0), ptx(3)] == [[12], [15]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sft = tiny.write_sft(folder / "sft")
    return sft, tiny.write_reward(folder / "reward", sft)


def steps(folders, train_policy=True, **changes):
    config = dataclasses.replace(CONFIG, **{"rollouts": 4, "minibatch": 2, **changes})
    roles = load_roles(*folders, device=torch.device("cpu"))
    batch, *_ = sample_responses(
        roles.policy, [[10, 11], [12], [13, 14, 15], [16]], max_new_tokens=5, temperature=1.0, stops=roles.stops,
        forbidden=roles.forbidden, pad_id=roles.pad_id, source=random_source(5),
    )  # fmt: skip
    old = compare_with_reference(roles.policy, roles.reference, batch, roles.forbidden, temperature=1.0, rows=4)
    noise = torch.randn(batch.input_ids.shape, generator=random_source(6)) * batch.response_mask
    rollout = Rollout(
        batch=batch, logprobs=old.logprobs, values=0 * noise, returns=noise,
        advantages=whiten_globally(noise, batch.response_mask),
    )  # fmt: skip
    engine = {"schedule": lambda _: 1.0, "max_grad_norm": 1.0, "precision": "float32", "learning_rate": 1e-2}
    learners = Learners(
        policy=prepare(roles.policy, **engine), value_model=prepare(roles.value_model, **engine),
        train_policy=train_policy,
    )  # fmt: skip
    chosen = make_objectives(config, roles.forbidden, ptx=None, update=0, kl_coef=0.0, step_kl_coef=config.step_kl_coef)
    found = take_steps(learners, rollout, chosen, config, order=random_source(7))
    now = compare_with_reference(roles.policy, roles.reference, batch, roles.forbidden, temperature=1.0, rows=4)
    return found, float(now.kl.sum() / batch.response_mask.sum())


def test_how_far_an_update_moved_is_measured_after_it(folders):
    found, _ = steps(folders, objective="penalised", step_kl_target=0.01, epochs=1, minibatch=4)
    # One step: seen on the way, the policy is still the one that sampled.
    assert found["approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert found["step_kl"] > 1e-6
    assert "step_kl" not in steps(folders)[0]


def test_a_trust_region_bounds_the_policy_while_values_take_their_usual_steps(folders):
    found, kl = steps(folders, objective="trust_region", trust_region_kl=0.004)
    # The reference is the policy that sampled, but the KL is the other way round: alike for so short a step.
    assert 0 < found["step_kl"] <= 0.004
    assert kl == pytest.approx(found["step_kl"], rel=0.3)
    assert found["value_grad_norm"] > 0
    assert found["steps"] == 4


def test_in_warm_up_no_trust_region_moves_the_policy(folders):
    found, kl = steps(folders, train_policy=False, objective="trust_region")
    assert kl == pytest.approx(0.0, abs=1e-7)
    assert "step_fraction" not in found
