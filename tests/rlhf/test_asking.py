"""Asking: random numbers belong to a place in the run, and every answer keeps the prompt that it belongs to."""

import dataclasses

import pytest
import torch

from rlhf.asking import Asker
from rlhf.engine import prepare
from rlhf.rewards.signals import Signals
from rlhf.roles import load_roles
from rlhf.showcase import read_questions
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_ppo import CONFIG


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roles")
    sft = tiny.write_sft(folder / "sft")
    tiny.write_prompts(folder / "prompts")
    return load_roles(sft, None, device=torch.device("cpu"), value="none"), folder / "prompts"


@pytest.fixture
def policy(roles):
    return prepare(roles[0].policy, learning_rate=1e-3, schedule=lambda _: 1.0, max_grad_norm=1.0, precision="float32")


def asker(roles, function=lambda answer: 1.0, **changes):
    questions, _ = read_questions(roles[1] / "train.jsonl", roles[0].tokenizer, max_tokens=40)
    return Asker(
        roles=roles[0], signals=Signals({"mine": 1.0}, functions={"mine": function}), questions=questions,
        config=dataclasses.replace(CONFIG, **changes), seed=3,
    )  # fmt: skip


def ids(unscored):
    return unscored.sampled.batch.input_ids.tolist()


def test_answers_belong_to_the_update_and_the_round(roles, policy):
    mine = asker(roles)
    prompts = mine.prompts_of(0, [])
    assert ids(mine.ask(policy, 0, prompts)) == ids(mine.ask(policy, 0, prompts, 0))
    assert ids(mine.ask(policy, 0, prompts)) != ids(mine.ask(policy, 1, prompts))
    assert ids(mine.ask(policy, 0, prompts)) != ids(mine.ask(policy, 0, prompts, 1))


def test_a_signal_reads_the_prompt_that_the_answer_belongs_to(roles, policy):
    def length_of_prompt(answer):
        return float(len(answer.messages[-1]["content"]))

    mine = asker(roles, length_of_prompt)
    prompts = [3, 3, 0, 11]
    answers = mine.ask(policy, 0, prompts).score()
    assert answers.asked == prompts
    for place, value in zip(answers.sampled.place.tolist(), answers.signals["mine"].tolist(), strict=True):
        assert value == len(mine.questions[prompts[place]].messages[-1]["content"])
    ended = answers.sampled.ended
    assert torch.equal(answers.scores[ended], answers.signals["mine"][ended])
    assert (answers.scores[~ended] == 0).all()  # missing_eos_penalty


def test_a_long_response_pays_its_price(roles, policy):
    plain = asker(roles).ask(policy, 0, [0, 1, 2, 3]).score()
    priced = asker(roles, overlong_buffer=6, overlong_penalty=6.0).ask(policy, 0, [0, 1, 2, 3]).score()
    lengths = plain.sampled.batch.response_mask.sum(dim=1)
    assert torch.allclose(plain.scores - priced.scores, lengths.float(), atol=1e-6)


def test_prompts_come_in_groups_and_every_one_once_in_a_lap(roles):
    mine = asker(roles, group_size=2)
    windows = [mine.prompts_of(update, []) for update in range(3)]
    for window in windows:
        assert window[::2] == window[1::2]
    assert sorted(index for window in windows for index in window[::2]) == list(range(12))
    assert mine.prompts_of(1, [5, 4, 3, 2, 1, 0, 7, 8]) == [1, 1, 0, 0, 7, 7, 8, 8]


def test_spare_prompts_belong_to_the_update_and_the_round(roles):
    mine = asker(roles)
    assert mine.spare(2)(1, 5) == mine.spare(2)(1, 5)
    assert mine.spare(2)(1, 5) != mine.spare(2)(2, 5)
    assert mine.spare(3)(1, 5) != mine.spare(2)(1, 5)


def test_a_hard_prompt_is_one_whose_answers_score_low(roles, policy):
    def by_prompt(answer):
        return -float(len(answer.messages[-1]["content"]))

    mine = asker(roles, by_prompt, max_new_tokens=24)
    hardness = mine.hardness(policy)
    assert hardness.shape == (12,)
    lengths = [len(question.messages[-1]["content"]) for question in mine.questions]
    # Answers that ended score minus the length, the few that were cut 0.
    assert all(0 <= hard <= length for hard, length in zip(hardness.tolist(), lengths, strict=True))
    assert sum(hard == length for hard, length in zip(hardness.tolist(), lengths, strict=True)) >= 4
    order = mine.curriculum(policy)
    assert len(order) == CONFIG.updates * CONFIG.rollouts
    assert mine.curriculum(policy) == order
