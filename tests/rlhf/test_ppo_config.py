"""Settings of the policy-gradient recipe: what is refused, and that the sentence says why."""

import dataclasses

import pytest

from rlhf import ppo_config
from rlhf.config import load_section, read_params
from rlhf.errors import BadInput
from rlhf.policy_gradient_slots import ADVANTAGES, AGGREGATIONS, BASELINES, KL_ESTIMATORS, OBJECTIVES
from rlhf.ppo_config import REFUSED, Config
from tests.rlhf.recipes.tiny_ppo import CONFIG, ROOT

GROUPED = {"advantage": "leave_one_out", "group_size": 4}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"group_size": 3}, "group_size is 3, wanted a divisor of rollouts = 8"),
        ({"group_size": 16}, "group_size is 16, wanted a divisor of rollouts = 8"),
        ({"advantage": "group_relative"}, "group_size is 1, wanted at least 2 since advantage group_relative"),
        ({**GROUPED, "gamma": 0.99}, "gamma is 0.99, wanted 1 since advantage leave_one_out"),
        ({"baseline": "value"}, "baseline is value, wanted none since advantage gae has a baseline of its own"),
        ({**GROUPED, "baseline": "mean"}, "baseline is mean, wanted none"),
        ({"dynamic_sampling": 1}, "dynamic_sampling is 1, wanted 0 with group_size 1"),
        ({"overlong_buffer": 7}, "overlong_buffer is 7, wanted at most max_new_tokens = 6"),
        ({"kl_place": "loss"}, "kl_estimator is k1 with kl_place loss, wanted k2 since the mean gradient of k1 is 0"),
        ({"dual_clip": 1.1}, r"dual_clip is 1.1, wanted more than 1 \+ clip_range_high = 1.2"),
        ({"dual_clip": 1.25, "clip_range_high": 0.28}, "clip_range_high = 1.28"),
        ({"dual_clip": 3.0, "objective": "penalised"}, "dual_clip is 3.0, wanted null since objective penalised"),
        ({"step_kl_target": 0.01}, "step_kl_target is 0.01, wanted null unless objective is penalised"),
        ({"step_kl_target": 0.01, "objective": "penalised", "step_kl_coef": 0.0}, "step_kl_target is 0.01"),
        ({"reference": "adapter_off"}, "reference is adapter_off, wanted frozen since lora_rank is 0"),
        ({"objective": "trust_region", "entropy_coef": 0.1}, "entropy_coef is 0.1, which objective trust_region"),
        ({"objective": "trust_region", "ptx_coef": 0.1}, "ptx_coef is 0.1, which objective trust_region"),
        ({"objective": "trust_region", "mask_cut": True}, "mask_cut is True, which objective trust_region"),
        ({"objective": "trust_region", "value_model": "shared"}, "value_model is shared, which objective"),
        ({"objective": "trust_region", "kl_place": "loss", "kl_estimator": "k2"}, "kl_place is loss, which objective"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_from", "base"), ("group_size", 0), ("advantage", "td"), ("baseline", "max"), ("objective", "a2c"),
        ("clip_range_high", 0.0), ("dual_clip", -1.0), ("step_kl_coef", -1.0), ("step_kl_target", 0.0),
        ("trust_region_kl", 0.0), ("trust_region_damping", -1.0), ("kl_place", "both"), ("kl_estimator", "k4"),
        ("aggregation", "mean"), ("dynamic_sampling", -1), ("overlong_buffer", -1), ("overlong_penalty", -1.0),
        ("value_model", "both"), ("value_coef", 0.0), ("reference", "ema"), ("lora_rank", -1), ("lora_alpha", 0.0),
        ("ptx_coef", -1.0), ("ptx_batch", 0), ("curriculum", "hard_first"), ("reward_combination", "median"),
        ("uncertainty_coef", -1.0), ("value_lora_rank", -1),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_sampler_modifiers_are_refused_with_the_reason(key):
    section = {**read_params(ROOT / "profiles/default.yaml")["ppo"], key: 1}
    with pytest.raises(BadInput, match=f"ppo.{key} is refused: the samples would come from another distribution"):
        load_section({"ppo": section}, "ppo", Config)


def test_sampler_modifiers_do_not_exist():
    names = {field.name for field in dataclasses.fields(Config)}
    assert not names & set(REFUSED)
    assert {"top_k", "top_p", "repetition_penalty", "min_length"} <= set(REFUSED)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": {}}, r"ppo\.rewards is {}, wanted at least one signal with a finite weight that is not 0"),
        ({"rewards": {"reward_model": 0.0}}, r"ppo\.rewards is {'reward_model': 0.0}, wanted at least one signal"),
        ({"rewards": {"reward_model": float("nan")}}, r"ppo\.rewards is {'reward_model': nan}"),
        (
            {"rewards": {"reward_modle": 1.0}},
            r"ppo\.rewards\.reward_modle: no such signal; did you mean reward_model\?",
        ),
        ({"rewards": {"taste": 1.0}}, "no such signal; there are reward_model, exact_answer, .*module:function"),
        ({"rewards": {"length": 1.0}}, r"missing key ppo\.reward_rules\.length\.at_most"),
        ({"reward_rules": {"lenght": {}}}, r"ppo\.reward_rules\.lenght: no such rule; did you mean length\?"),
        ({"reward_rules": {"charm": {}}}, "no such rule; there are exact_answer, format, length, forbidden_phrases"),
        (
            {"rewards": {"length": 1.0}, "reward_rules": {"length": {"at_most": 9, "unit": "lines"}}},
            r"ppo\.reward_rules\.length: unit is 'lines', wanted one of words",
        ),
    ],
)
def test_signals_are_checked_with_the_settings_and_not_only_when_the_stage_runs(changes, sentence):
    with pytest.raises(BadInput, match=sentence):
        dataclasses.replace(CONFIG, **changes)


def test_values_are_wanted_by_gae_and_by_the_value_baseline_only():
    assert CONFIG.needs_values
    assert dataclasses.replace(CONFIG, advantage="reward_to_go", baseline="value").needs_values
    for changes in (GROUPED, {"advantage": "reward_to_go"}, {"advantage": "full_return", "baseline": "mean"}):
        assert not dataclasses.replace(CONFIG, **changes).needs_values


def test_the_upper_range_is_the_lower_one_unless_given():
    assert CONFIG.clip_high == CONFIG.clip_range == 0.2
    assert dataclasses.replace(CONFIG, clip_range_high=0.28).clip_high == 0.28


def test_every_name_has_a_function():
    assert tuple(ADVANTAGES) == ppo_config.ADVANTAGES
    assert tuple(BASELINES) == ppo_config.BASELINES
    assert tuple(OBJECTIVES) == ppo_config.OBJECTIVES
    assert tuple(AGGREGATIONS) == ppo_config.AGGREGATIONS
    assert tuple(KL_ESTIMATORS) == ppo_config.KL_ESTIMATORS


def test_no_minibatch_means_one_step_on_all_rollouts() -> None:
    whole = dataclasses.replace(CONFIG, minibatch=None)
    assert whole.step_rollouts == whole.rollouts
    assert CONFIG.step_rollouts == CONFIG.minibatch
