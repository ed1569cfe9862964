"""What goes wrong in a rollout has a defined end: nothing is NaN, nothing is silent."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf import policy_update
from rlhf.errors import BadInput, StageFailed
from rlhf.models import load_policy, save_policy
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_ppo import run, write_inputs

CONSTANT = {"rewards": {"tests.rlhf.recipes.tiny_ppo:constant": -2.0}, "missing_eos_penalty": 1.0}
"""Every answer scores -1, cut or not."""
BLAMED = {**CONSTANT, "advantage": "reward_to_go", "whiten": False}
"""Every token is told so."""
GROUPS = {"group_size": 4, "advantage": "group_relative", "whiten": False}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def changed_sft(inputs, folder, change):
    """The same inputs but for a change to the policy's embedding (which is also its head)."""
    tokenizer = load_tokenizer(inputs["sft"])
    policy = load_policy(inputs["sft"], device="cpu")
    with torch.no_grad():
        change(policy, tokenizer)
    save_policy(policy, tokenizer, folder)
    return {**inputs, "sft": folder}


def finite(rows):
    return all(math.isfinite(value) for row in rows for value in row.values())


@pytest.mark.parametrize("changes", [{}, GROUPS, {"advantage": "reward_to_go", "baseline": "mean"}])
def test_equal_rewards_teach_nothing_and_nothing_is_nan(inputs, tmp_path, changes):
    rows, _ = run(inputs, tmp_path, updates=2, kl_coef=0.0, **CONSTANT, **changes)
    assert finite(rows)
    assert rows[0]["score"] == -1
    if changes:
        # Without values to disagree with, the advantages are 0, and so is every gradient.
        assert rows[0]["advantage_std"] == pytest.approx(0.0, abs=1e-7)
        assert rows[1]["kl"] == pytest.approx(0.0, abs=1e-6)
    if changes is GROUPS:
        assert rows[0]["equal_groups"] == 1
        assert rows[0]["grad_norm"] == 0


def test_rounds_of_sampling_end_where_every_answer_scores_the_same(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path, updates=2, kl_coef=0.0, dynamic_sampling=2, **CONSTANT, **GROUPS)
    # 2 groups of 4, both replaced in each of 2 rounds, and still equal.
    assert rows[0]["replaced_groups"] == 4
    assert rows[0]["equal_groups"] == 1


def test_empty_responses_are_one_end_token_and_train(inputs, tmp_path):
    def end_at_once(policy, tokenizer):
        end = tokenizer.convert_tokens_to_ids("<|end|>")
        policy.get_input_embeddings().weight[end, 0] += 1.0

    rows, _ = run(changed_sft(inputs, tmp_path / "sft", end_at_once), tmp_path, updates=2, **BLAMED)
    assert finite(rows)
    assert rows[0]["length_tokens"] < 1.5
    assert rows[0]["end_rate"] == 1
    assert rows[0]["grad_norm"] > 0


def never_end(policy, tokenizer):
    policy.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<|end|>"), 0] -= 5.0


def test_a_batch_that_was_cut_whole_leaves_the_policy_where_it_was(inputs, tmp_path):
    changed = changed_sft(inputs, tmp_path / "sft", never_end)
    rows, outputs = run(changed, tmp_path, updates=2, mask_cut=True, max_new_tokens=1)
    assert finite(rows)
    assert [row["end_rate"] for row in rows] == [0, 0]
    assert [row["idle_steps"] for row in rows] == [1, 1]
    folders = (changed["sft"], outputs["model"])
    start, end = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.equal(start[name], end[name]) for name in start)
    # Without the mask those responses, all of one bad score, do move it.
    rows, _ = run(changed, tmp_path / "b", updates=2, max_new_tokens=1, **BLAMED)
    assert rows[0]["grad_norm"] > 0


def test_a_vocabulary_that_is_padded_beyond_the_tokenizer_is_never_sampled(inputs, tmp_path):
    def pad(policy, tokenizer):
        policy.resize_token_embeddings(len(tokenizer) + 6, mean_resizing=False)
        weight = policy.get_input_embeddings().weight
        weight[len(tokenizer) :] = 0
        weight[len(tokenizer) :, 0] = 50.0  # far likelier than any token, were they not forbidden

    changed = changed_sft(inputs, tmp_path / "sft", pad)
    changed["reward"] = tiny.write_reward(tmp_path / "reward", changed["sft"])
    rows, _ = run(changed, tmp_path, updates=2)
    assert finite(rows)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[0]["first_ratio"] < 5e-6
    assert rows[0]["sampler_gap"] < 1e-5
    # Were the padding sampled, its probability would be 1 and the entropy 0.
    assert rows[0]["entropy"] > 1


def test_dropout_in_the_base_model_changes_neither_ratio_nor_kl(inputs, tmp_path):
    changed = changed_sft(inputs, tmp_path / "sft", lambda policy, tokenizer: None)
    file = changed["sft"] / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "attention_dropout": 0.5, "hidden_dropout": 0.5}))
    rows, _ = run(changed, tmp_path, updates=2)
    plain, _ = run(inputs, tmp_path / "plain", updates=2)
    for row, other in zip(rows, plain, strict=True):
        assert row["first_ratio"] < 5e-6
        assert row == other
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_prompt_longer_than_the_context_is_left_out_and_counted(inputs, tmp_path):
    prompts = tiny.write_prompts(tmp_path / "prompts")
    rows = [json.loads(line) for line in (prompts / "train.jsonl").read_text().splitlines()]
    rows.append({"id": "long", "prompt": [{"role": "user", "content": "tree " * 100}]})
    tiny.write_rows(prompts / "train.jsonl", rows)
    _, outputs = run({**inputs, "prompts": prompts}, tmp_path, updates=2, max_prompt_tokens=10_000)
    metrics = json.loads(outputs["metrics"].read_text())
    assert (metrics["prompts"], metrics["dropped_prompts"]) == (12, 1)


class Spoilt:
    """An objective whose first losses are NaN."""

    def __init__(self, objective, times):
        self.objective, self.times, self.calls = objective, times, 0

    def __call__(self, *tensors, **settings):
        self.calls += 1
        found = self.objective(*tensors, **settings)
        return found._replace(loss=found.loss * math.nan) if self.calls <= self.times else found


def spoil(monkeypatch, times):
    make = policy_update.OBJECTIVES["clipped"]
    calls = []

    def spoilt(config, coef):
        calls.append(Spoilt(make(config, coef), times if not calls else 0))
        return calls[-1]

    monkeypatch.setitem(policy_update.OBJECTIVES, "clipped", spoilt)


def test_a_loss_that_is_not_a_number_is_skipped_and_counted(inputs, tmp_path, monkeypatch):
    spoil(monkeypatch, 1)
    rows, outputs = run(inputs, tmp_path, updates=3)
    assert [row["skipped"] for row in rows] == [1, 1, 1]
    assert rows[-1]["kl"] > 0
    model = AutoModelForCausalLM.from_pretrained(outputs["model"])
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_losses_that_stay_not_a_number_end_the_stage(inputs, tmp_path, monkeypatch):
    spoil(monkeypatch, 100)
    with pytest.raises(StageFailed, match="in a row"):
        run(inputs, tmp_path, updates=3, epochs=5)


def test_a_signal_that_nobody_knows_is_refused(inputs, tmp_path):
    with pytest.raises(BadInput, match=r"ppo\.rewards\.nowhere:taste: nowhere: no such module"):
        run(inputs, tmp_path, rewards={"nowhere:taste": 1.0})
