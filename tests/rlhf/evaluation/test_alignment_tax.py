"""Fit to demonstrations, the regression set and their changes, on two-layer models."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.evaluation.alignment_tax import demonstration_fit, fits, regression, tax
from rlhf.evaluation.answers import Policy
from rlhf.tokenizer import encode_prompt, encode_response

CPU = torch.device("cpu")
ASK = [{"role": "user", "content": "My lamp is broken."}]
READING: dict[str, Any] = {"batch": 2, "precision": "float32"}
RIGHT, WRONG = "I booked a full refund.", "I booked a full fefund."


@pytest.fixture(scope="module")
def sft(folders: dict[str, Path]) -> Policy:
    return Policy.load(folders["sft"], device=CPU)


def table(policy: Policy, response: str) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities at the places of a response, computed without batches or masks, and its tokens."""
    start, end = encode_prompt(policy.tokenizer, ASK), encode_response(policy.tokenizer, response)
    with torch.no_grad():
        return policy.model(torch.tensor([start + end])).logits[0, len(start) - 1 : -1].log_softmax(-1), end


def nats(policy: Policy, response: str) -> float:
    found, ids = table(policy, response)
    return sum(float(found[place, token]) for place, token in enumerate(ids))


def demonstration(response: str) -> dict[str, Any]:
    return {"id": "d", "prompt": ASK, "response": response, "meta": {}}


def pair(chosen: str, rejected: str, *, label: float = 1.0, probe: str = "item") -> dict[str, Any]:
    return {"prompt": ASK, "chosen": chosen, "rejected": rejected, "label": label, "meta": {"probe": probe}}


def test_perplexity_and_accuracy_by_hand(sft: Policy) -> None:
    found, ids = table(sft, RIGHT)
    hits = sum(int(found[place].argmax()) == token for place, token in enumerate(ids))
    # Twice the same record leaves both means as they are.
    result = demonstration_fit(sft, [demonstration(RIGHT), demonstration(RIGHT)], **READING)
    assert result["perplexity"] == pytest.approx(math.exp(-nats(sft, RIGHT) / len(ids)), rel=1e-4)
    assert result["token_accuracy"] == pytest.approx(hits / len(ids))


def test_every_token_of_the_likeliest_answer_is_a_hit(sft: Policy) -> None:
    start = encode_prompt(sft.tokenizer, ASK)
    ids: list[int] = []
    with torch.no_grad():
        for _ in range(4):
            ids.append(int(sft.model(torch.tensor([start + ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % len(sft.forbidden)]
    found = fits(sft, [(start, ids), (start, other)], **READING)
    assert [(fit.hits, fit.tokens) for fit in found] == [(4, 4), (3, 4)]
    assert found[0].logprob > found[1].logprob


def test_a_fit_does_not_depend_on_the_batch(sft: Policy) -> None:
    exchanges = [
        (encode_prompt(sft.tokenizer, ASK), encode_response(sft.tokenizer, text)) for text in (RIGHT, "Hi", WRONG)
    ]
    together = fits(sft, exchanges, batch=3, precision="float32")
    alone = [fits(sft, [exchange], batch=1, precision="float32")[0] for exchange in exchanges]
    assert [fit.hits for fit in together] == [fit.hits for fit in alone]
    assert [fit.logprob for fit in together] == pytest.approx([fit.logprob for fit in alone], rel=1e-5)


def test_nothing_to_predict_and_nothing_that_fits(sft: Policy) -> None:
    assert demonstration_fit(sft, [], **READING) == {}
    assert demonstration_fit(sft, [demonstration("lamp " * 200)], **READING) == {}
    assert regression(sft, [], [], **READING) == {}
    assert regression(sft, [pair("lamp " * 200, "Hi")], [], **READING) == {}


def test_the_regression_set_by_hand(sft: Policy) -> None:
    margin = nats(sft, RIGHT) - nats(sft, WRONG)
    better, worse = (RIGHT, WRONG) if margin > 0 else (WRONG, RIGHT)
    probes = [
        pair(better, worse, probe="order"),
        pair(worse, better, probe="item"),
        pair(better, worse, probe="item"),
        pair(better, worse, probe="item"),
    ]
    result = regression(sft, probes, [pair(better, worse)], **READING)
    # Three of four are right: all of order, two of three of item. Margins: m - m + m + m over four.
    assert (result["records"], result["share"]) == (4, 0.75)
    assert result["facts"] == {"item": pytest.approx(2 / 3), "order": 1.0}
    assert list(result["facts"]) == ["item", "order"]
    assert result["margin"] == pytest.approx(abs(margin) / 2, rel=1e-4)


def test_without_probes_the_pairs_with_a_preference_count(sft: Policy) -> None:
    pairs = [pair(RIGHT, WRONG), pair(WRONG, RIGHT, label=0.8), pair(RIGHT, WRONG, label=0.5)]
    result = regression(sft, [], pairs, **READING)
    assert (result["records"], result["share"]) == (2, 0.5)
    assert result["margin"] == pytest.approx(0.0, abs=1e-5)
    assert "facts" not in result


def test_equal_answers_count_half(sft: Policy) -> None:
    assert regression(sft, [], [pair(RIGHT, RIGHT)], **READING)["share"] == 0.5


def test_the_tax_is_after_minus_before() -> None:
    fit = {"sft": {"perplexity": 2.0, "token_accuracy": 0.75}, "ppo": {"perplexity": 2.5, "token_accuracy": 0.5}}
    sets = {"sft": {"share": 1.0, "margin": 4.0}, "ppo": {"share": 0.75, "margin": 1.0, "facts": {"item": 0.75}}}
    assert tax(fit, sets, baseline="sft") == {
        "sft": {"perplexity": 2.0, "token_accuracy": 0.75, "regression": 1.0, "regression_margin": 4.0},
        "ppo": {
            "perplexity": 2.5, "token_accuracy": 0.5, "regression": 0.75, "regression_margin": 1.0,
            "perplexity_change": 0.5, "token_accuracy_change": -0.25, "regression_change": -0.25,
            "regression_margin_change": -3.0,
        },
    }  # fmt: skip


def test_what_was_not_measured_has_no_tax() -> None:
    assert tax({"sft": {}, "ppo": {}}, {"sft": {}, "ppo": {}}, baseline="sft") == {"sft": {}, "ppo": {}}
