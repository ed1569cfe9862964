"""Parts of the recipe that are chosen by settings: signals, groups, prices, curriculum, and that all of them resume."""

import json

import pytest
import torch

from rlhf.checkpoint import Checkpoints
from rlhf.monitor import Monitor
from rlhf.recipes import ppo
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_ppo import run, write_inputs

LENGTH = {"length": {"at_most": 2, "unit": "tokens", "price": 1.0}}
"""Each token beyond the second costs 1: many answers to one prompt score the same."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def rollouts(monkeypatch):
    """The rollouts that the recipe learns from."""
    found = []
    take = ppo.take_steps

    def record(learners, rollout, *rest, **settings):
        found.append(rollout)
        return take(learners, rollout, *rest, **settings)

    monkeypatch.setattr(ppo, "take_steps", record)
    return found


def test_the_score_lands_on_the_last_token_that_the_policy_emitted(inputs, tmp_path, rollouts):
    run(
        inputs, tmp_path, updates=1, warmup_updates=0, rollouts=32, minibatch=32, kl_coef=0.0, gamma=0.5,
        advantage="reward_to_go", whiten=False, missing_eos_penalty=1.0,
        rewards={"tests.rlhf.recipes.tiny_ppo:constant": -2.0},
    )  # fmt: skip
    (rollout,) = rollouts
    end = load_tokenizer(inputs["sft"]).convert_tokens_to_ids("<|end|>")
    for row, mask in zip(rollout.advantages, rollout.batch.response_mask, strict=True):
        places = mask.nonzero().squeeze(1).tolist()
        # A score of -1 at the last token, and half of what follows at each one before it; nothing after it.
        assert row[places].tolist() == [-(0.5**n) for n in reversed(range(len(places)))]
        assert row.sum() == row[places].sum()
    for ids, mask, whole in zip(
        rollout.batch.input_ids, rollout.policy_mask, rollout.batch.attention_mask, strict=True
    ):
        # The end token is trainable, there is no other one in the response, and nothing follows it.
        last = int(mask.nonzero().max())
        assert last == int(whole.nonzero().max())
        stops = (ids[mask] == end).tolist()
        assert sum(stops) == stops[-1]
    ended = (rollout.batch.input_ids == end) & rollout.policy_mask
    assert 8 < int(ended.sum()) < 32


def test_groups_share_a_prompt_and_are_compared_with_each_other(inputs, tmp_path, rollouts):
    run(inputs, tmp_path, updates=2, rollouts=16, group_size=4, advantage="leave_one_out", whiten=False, kl_coef=0.0)
    for rollout in rollouts:
        batch = rollout.batch
        by_prompt = {}
        for row in range(16):
            prompt = tuple(batch.input_ids[row][batch.attention_mask[row] & ~batch.response_mask[row]].tolist())
            by_prompt.setdefault(prompt, []).append(rollout.advantages[row][batch.response_mask[row]][0].item())
        for advantages in by_prompt.values():
            assert len(advantages) % 4 == 0  # the same text may stand in the prompts twice
            assert sum(advantages) == pytest.approx(0.0, abs=1e-5)


def test_every_signal_is_recorded_and_the_score_is_their_weighted_sum(inputs, tmp_path):
    rows, _ = run(
        inputs, tmp_path, updates=2, missing_eos_penalty=0.0,
        rewards={"tests.rlhf.recipes.tiny_ppo:constant": 2.0, "reward_model": 0.0},
    )  # fmt: skip
    name = "reward_tests.rlhf.recipes.tiny_ppo:constant"
    assert rows[0][name] == 0.5
    assert rows[0]["reward_reward_model"] != 0
    # Responses that were cut score 0 here.
    assert rows[0]["score"] == pytest.approx(2 * 0.5 * rows[0]["end_rate"])


def test_without_the_signal_reward_model_none_is_loaded(inputs, tmp_path, monkeypatch):
    found = []
    load = ppo.load_roles

    def record(*paths, **settings):
        found.append(load(*paths, **settings))
        return found[0]

    monkeypatch.setattr(ppo, "load_roles", record)
    run(inputs, tmp_path, updates=2, rewards={"length": 1.0}, reward_rules=LENGTH, advantage="reward_to_go")
    assert found[0].held().keys() == {"policy", "reference"}


def test_the_price_of_length_lowers_the_scores_of_long_responses(inputs, tmp_path):
    plain, _ = run(inputs, tmp_path / "a", updates=1, warmup_updates=0)
    priced, _ = run(inputs, tmp_path / "b", updates=1, warmup_updates=0, overlong_buffer=6, overlong_penalty=6.0)
    # A buffer as long as the longest response and a penalty of 6: 1 for every token.
    assert plain[0]["score"] - priced[0]["score"] == pytest.approx(plain[0]["length_tokens"], rel=1e-4)


def test_a_temperature_belongs_to_sampling_training_and_reference(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path, updates=2, temperature=0.6)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[0]["first_ratio"] < 5e-6
    assert rows[0]["sampler_gap"] < 1e-5


def test_a_curriculum_asks_every_prompt_once_from_the_easy_ones_on(inputs, tmp_path, rollouts):
    prompts = tiny.write_prompts(tmp_path / "prompts", train=16)
    rows, _ = run({**inputs, "prompts": prompts}, tmp_path, updates=2, curriculum="easy_first")
    assert len(rows) == 2
    ids = [
        tuple(batch.input_ids[row][batch.attention_mask[row] & ~batch.response_mask[row]].tolist())
        for batch in (rollout.batch for rollout in rollouts)
        for row in range(8)
    ]
    texts = [json.loads(line)["prompt"][0]["content"] for line in (prompts / "train.jsonl").read_text().splitlines()]
    assert len(set(ids)) == len(set(texts))


def test_the_kl_in_the_loss_holds_the_policy_back(inputs, tmp_path):
    settings = {"updates": 6, "rollouts": 32, "minibatch": 16, "learning_rate": 2e-2, "kl_place": "loss",
                "kl_estimator": "k2", "sample_every": 6}  # fmt: skip
    free, _ = run(inputs, tmp_path / "a", **settings, kl_coef=0.0)
    held, _ = run(inputs, tmp_path / "b", **settings, kl_coef=1.0)
    assert held[0]["kl_loss"] >= 0
    assert held[-1]["kl"] < 0.5 * free[-1]["kl"]


EVERYTHING = {
    "shared": {
        "objective": "clipped_penalised", "step_kl_target": 1e-4, "value_model": "shared", "ptx_coef": 0.5,
        "ptx_batch": 3, "curriculum": "easy_first", "kl_controller": "adaptive", "value_warmup_updates": 1,
    },
    "groups": {
        "group_size": 4, "advantage": "group_relative", "whiten": False, "dynamic_sampling": 1, "kl_place": "loss",
        "kl_estimator": "k2", "lora_rank": 2, "reference": "adapter_off", "mask_cut": True,
        "rewards": {"length": 1.0}, "reward_rules": LENGTH,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_run_that_was_killed_ends_with_the_bytes_of_one_that_was_not(name, inputs, tmp_path, monkeypatch):
    settings = EVERYTHING[name]
    run(inputs, tmp_path / "whole", **settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_KEY", "feed")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    log = Monitor.log

    def die_at_three(self, step, **metrics):
        if step == 3:
            raise KeyboardInterrupt
        log(self, step, **metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "log", die_at_three)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "resumed", **settings)
    assert not (tmp_path / "resumed").exists()
    run(inputs, tmp_path / "resumed", **settings)
    assert tiny.tree(tmp_path / "resumed") == tiny.tree(tmp_path / "whole")


def test_while_a_shared_head_warms_up_the_policy_rests(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path, value_model="shared", value_warmup_updates=2)
    assert [row["kl"] for row in rows[:3]] == pytest.approx([0.0] * 3, abs=1e-6)
    assert rows[3]["kl"] > 0
    assert torch.tensor([row["value_loss"] for row in rows]).isfinite().all()


def test_without_values_there_is_nothing_to_warm_up_and_the_policy_learns_at_once(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path, updates=2, advantage="leave_one_out", group_size=4, value_warmup_updates=1)
    assert rows[0]["grad_norm"] > 0
    assert rows[1]["kl"] > 0
