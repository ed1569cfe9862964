"""Scoring beside sampling: it begins before the batch is complete, and no bit of any number depends on it."""

import dataclasses
import threading
import time

import pytest
import torch

from rlhf.errors import BadInput
from rlhf.reward_model import RewardModel
from rlhf.rewards.signals import Signals, build_signals
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_ppo import run, write_inputs
from tests.rlhf.test_asking import asker
from tests.rlhf.test_asking import policy as policy
from tests.rlhf.test_asking import roles as roles

PROMPTS = [3, 3, 0, 11, 5, 1, 7, 2]


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny.write_reward(folder / "reward", tiny.write_sft(folder / "sft"))


def slow(answer):
    """A score that is ready sooner for some answers than for others."""
    time.sleep(0.003 * (len(answer.text) % 5))
    return len(answer.text) + answer.tokens / 7 + 100 * answer.ended


def with_reward_model(roles, folder, **changes):
    plain = asker(roles, max_new_tokens=16, **changes)
    signals = build_signals(
        {"reward_model": 0.3}, rule_settings={}, reward_model=RewardModel.load(folder, device="cpu"), reward=folder,
        base=None, combination="mean", uncertainty_coef=1.0, rows=3, precision="float32", device=torch.device("cpu"),
    )  # fmt: skip
    both = Signals({"reward_model": 0.3, "slow": 1.0}, model=signals.model, functions={"slow": slow})
    return dataclasses.replace(plain, signals=both)


def test_every_number_is_the_same_to_the_last_bit(roles, policy, reward):
    found = []
    for overlap in (False, True):
        mine = with_reward_model(roles, reward, overlap=overlap)
        found.append(mine.ask(policy, 0, PROMPTS).score())
    plain, overlapped = found
    assert plain.asked == overlapped.asked
    assert len(set(plain.sampled.batch.response_mask.sum(dim=1).tolist())) > 1
    for name in ("captured", "ended", "place"):
        assert torch.equal(getattr(plain.sampled, name), getattr(overlapped.sampled, name))
    for name in ("input_ids", "attention_mask", "response_mask"):
        assert torch.equal(getattr(plain.sampled.batch, name), getattr(overlapped.sampled.batch, name))
    assert list(plain.signals) == list(overlapped.signals) == ["reward_model", "slow"]
    assert all(torch.equal(plain.signals[name], overlapped.signals[name]) for name in plain.signals)
    assert torch.equal(plain.scores, overlapped.scores)


@pytest.mark.parametrize("overlap", [True, False])
def test_an_answer_is_scored_while_others_are_sampled(roles, policy, overlap):
    scored, steps, before_the_last = threading.Event(), [], []

    def function(answer):
        scored.set()
        return 1.0

    def wait(*_):
        steps.append(1)
        if len(steps) == 16:  # the prompts and 15 tokens: nothing is sampled after this
            before_the_last.append(scored.wait(timeout=30 if overlap else 0))

    hook = roles[0].policy.register_forward_pre_hook(wait)
    answers = asker(roles, function, overlap=overlap, max_new_tokens=16).ask(policy, 0, PROMPTS).score()
    hook.remove()
    assert not bool(answers.sampled.ended.all())
    assert before_the_last == [overlap]


def test_models_score_on_a_thread_of_their_own(roles, policy, reward):
    for overlap in (False, True):
        mine, names = with_reward_model(roles, reward, overlap=overlap), []
        inner = mine.signals.model

        def model(batch, inner=inner, names=names):
            names.append(threading.current_thread().name)
            return inner(batch)

        mine.signals.model = model
        unscored = mine.ask(policy, 0, PROMPTS)
        if not overlap:
            assert names == []
        unscored.score()
        assert [name.startswith("score") for name in names] == [overlap]


def test_a_signal_that_fails_is_heard_of_where_scores_are_asked_for(roles, policy):
    def broken(answer):
        raise RuntimeError("no such thing")

    unscored = asker(roles, broken, overlap=True).ask(policy, 0, PROMPTS)
    with pytest.raises(BadInput, match="'mine' failed on the response"):
        unscored.score()


def test_a_run_writes_the_same_bytes(tmp_path):
    inputs = write_inputs(tmp_path)
    rewards = {"reward_model": 1.0, "tests.rlhf.recipes.tiny_ppo:constant": 0.1, "length": 0.5}
    rules = {"length": {"at_most": 1, "price": 0.5}}
    found = []
    for overlap in (False, True):
        rows, outputs = run(
            inputs, tmp_path / str(overlap), updates=2, rewards=rewards, reward_rules=rules, overlap=overlap
        )
        found.append((rows, (outputs["model"] / "model.safetensors").read_bytes()))
    assert found[0] == found[1]
