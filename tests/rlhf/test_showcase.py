"""Samples for people: the same questions with the same random numbers, scored when a reward model is given."""

import pytest
import torch

from rlhf.rewards.signals import Signals
from rlhf.roles import load_roles
from rlhf.showcase import SHOWN, read_questions, show
from tests.rlhf.recipes import tiny_models as tiny


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    sft = tiny.write_sft(folder / "sft")
    return load_roles(sft, tiny.write_reward(folder / "reward", sft), device=torch.device("cpu"))


@pytest.fixture
def questions(roles, tmp_path):
    found, dropped = read_questions(tiny.write_prompts(tmp_path) / "train.jsonl", roles.tokenizer, max_tokens=99)
    assert dropped == 0
    return found


def test_long_prompts_are_left_out_and_counted(roles, questions, tmp_path):
    lengths = [len(question.ids) for question in questions]
    found, dropped = read_questions(tmp_path / "train.jsonl", roles.tokenizer, max_tokens=min(lengths))
    assert len(found) == lengths.count(min(lengths))
    assert len(found) + dropped == len(questions)


def test_the_first_questions_are_answered_and_answered_alike(roles, questions):
    def ask(seed):
        return show(roles.policy, roles.tokenizer, questions, step=3, max_new_tokens=8, temperature=1.0, seed=seed)

    rows = ask(1)
    assert rows == ask(1)
    assert rows != ask(2)
    assert len(rows) == SHOWN
    assert set(rows[0]) == {"step", "prompt", "response", "ended"}
    assert rows[0]["prompt"] == [{"role": "user", "content": "tree "}]
    assert all("<|" not in row["response"] for row in rows)


def shown(roles, questions, score):
    return show(
        roles.policy, roles.tokenizer, questions, step=1, max_new_tokens=8, temperature=1.0, seed=1, score=score
    )


def test_rewards_are_written_when_somebody_scores(roles, questions):
    rows = shown(roles, questions, Signals({"size": 0.5}, functions={"size": lambda answer: len(answer.text)}))
    assert [row["reward"] for row in rows] == [len(row["response"]) / 2 for row in rows]
    assert "rewards" not in rows[0]


def test_several_signals_are_written_by_name(roles, questions):
    functions = {"size": lambda answer: len(answer.text), "ended": lambda answer: float(answer.ended)}
    for row in shown(roles, questions, Signals({"size": 1.0, "ended": 2.0}, functions=functions)):
        assert row["rewards"] == {"size": len(row["response"]), "ended": float(row["ended"])}
        assert row["reward"] == len(row["response"]) + 2 * row["ended"]


def test_a_question_keeps_what_its_record_says(roles, tmp_path):
    prompt = [{"role": "user", "content": "tree"}]
    tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": prompt, "meta": {"answer": "3"}}, {"prompt": prompt}])
    found, _ = read_questions(tmp_path / "rows.jsonl", roles.tokenizer, max_tokens=99)
    assert [question.meta for question in found] == [{"answer": "3"}, {}]


def test_no_questions_no_rows(roles):
    assert show(roles.policy, roles.tokenizer, [], step=1, max_new_tokens=8, temperature=1.0, seed=1) == []
