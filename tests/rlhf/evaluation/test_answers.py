"""Sampling answers and their divergence from a reference, on two-layer models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.evaluation.answers import Policy, Sampling, answer_rows, divergences, fitting, sample
from rlhf.evaluation.judging import Scorer

CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=1.0, max_new_tokens=6, batch=4, precision="float32", seed=7)


def prompt(name: str, text: str) -> dict[str, object]:
    return {"id": name, "prompt": [{"role": "user", "content": text}], "meta": {}}


PROMPTS = [prompt("b", "My lamp is broken."), prompt("a", "Order 201 is late, where is my desk?"), prompt("c", "Hi")]


@pytest.fixture(scope="module")
def sft(folders: dict[str, Path]) -> Policy:
    return Policy.load(folders["sft"], device=CPU)


@pytest.fixture(scope="module")
def other(folders: dict[str, Path]) -> Policy:
    return Policy.load(folders["other"], device=CPU)


def test_answers_keep_the_order_and_the_limits(sft: Policy) -> None:
    answers = sample(sft, PROMPTS, SAMPLING, name="sft")
    assert [answer.prompt["id"] for answer in answers] == ["b", "a", "c"]
    assert all(1 <= len(answer.ids) <= 6 for answer in answers)
    assert all(answer.ended == (answer.ids[-1] in sft.stops) for answer in answers)


def test_a_sample_belongs_to_its_prompt_and_not_to_its_batch(sft: Policy) -> None:
    together = sample(sft, PROMPTS, SAMPLING, name="sft")
    alone = [sample(sft, [record], replace(SAMPLING, batch=1), name="sft")[0] for record in PROMPTS]
    assert [answer.ids for answer in alone] == [answer.ids for answer in together]


def test_two_names_give_independent_samples(sft: Policy) -> None:
    first, second = sample(sft, PROMPTS, SAMPLING, name="sft"), sample(sft, PROMPTS, SAMPLING, name="sft_again")
    assert [answer.ids for answer in first] != [answer.ids for answer in second]


def test_divergence_from_itself_is_zero(folders: dict[str, Path], sft: Policy) -> None:
    twin = Policy.load(folders["sft"], device=CPU)
    answers = sample(sft, PROMPTS, SAMPLING, name="sft")
    assert divergences(sft, sft, answers, SAMPLING) == [0.0] * 3
    assert divergences(twin, sft, answers, SAMPLING) == pytest.approx([0.0] * 3, abs=1e-6)


def test_divergence_is_the_sum_over_tokens_of_the_whole_vocabulary(sft: Policy, other: Policy) -> None:
    answers = sample(other, PROMPTS, SAMPLING, name="other")
    wanted = []
    for answer in answers:
        ids, start = torch.tensor([answer.prompt_ids + answer.ids]), len(answer.prompt_ids)
        with torch.no_grad():
            tables = [
                policy.model(ids).logits[0, start - 1 : -1].masked_fill(policy.forbidden, -torch.inf).log_softmax(-1)
                for policy in (other, sft)
            ]
        allowed = ~other.forbidden
        p, q = tables[0][:, allowed], tables[1][:, allowed]
        wanted.append(float((p.exp() * (p - q)).sum()))
    assert divergences(other, sft, answers, SAMPLING) == pytest.approx(wanted, rel=1e-4)
    assert min(wanted) > 0


def test_prompts_without_room_are_left_out(sft: Policy) -> None:
    long = prompt("0", "lamp " * 200)
    kept = fitting([long, *PROMPTS], sft, max_new_tokens=6, most=2)
    assert [record["id"] for record in kept] == ["a", "b"]


def test_rows_hold_what_the_file_promises(folders: dict[str, Path], sft: Policy) -> None:
    reward, judge = (
        Scorer.load(folders[name], device=CPU, batch=2, precision="float32") for name in ("reward", "judge")
    )
    graded = {**PROMPTS[0], "meta": {"action": "refund", "name": "Amara", "order": "201", "item": "desk"}}
    answers = sample(sft, [graded, PROMPTS[1]], SAMPLING, name="sft")
    rows = answer_rows(answers, split="dev", policy="sft", kl=[0.5, 0.25], reward=reward, judge=judge)
    assert [row["id"] for row in rows] == ["a", "b"]
    assert set(rows[0]) == {
        "split", "policy", "id", "prompt", "response", "ended", "tokens", "kl", "judge", "reward", "gold", "meta",
    }  # fmt: skip
    assert [row["kl"] for row in rows] == [0.25, 0.5]
    assert rows[0]["gold"] is None
    assert isinstance(rows[1]["gold"], float)
    assert rows[1]["tokens"] == len(answers[0].ids)
