"""Scorers on text and ids, and what is said about their trustworthiness, worked out by hand."""

import math
from pathlib import Path

import pytest
import torch

from rlhf.evaluation.judging import Scorer, correlation, gold_score, pair_metrics, probe_metrics
from rlhf.tokenizer import encode_prompt, encode_response

META = {"action": "refund", "name": "Amara", "order": "201", "item": "desk"}
PROMPT = [{"role": "user", "content": "My lamp is broken."}]


@pytest.fixture(scope="module")
def scorer(folders: dict[str, Path]) -> Scorer:
    return Scorer.load(folders["judge"], device=torch.device("cpu"), batch=2, precision="float32")


def pair(label: float, chosen: str = "a", rejected: str = "b", **meta: object) -> dict[str, object]:
    return {"prompt": PROMPT, "chosen": chosen, "rejected": rejected, "label": label, "meta": meta}


def test_text_and_ids_score_alike_in_any_batch(scorer: Scorer) -> None:
    texts = ["Good day Amara.", "I booked a full refund. Count on 5 days for that.", "Order 201."]
    by_text = scorer.score_texts([PROMPT] * 3, texts)
    by_ids = [
        scorer.score_ids([encode_prompt(scorer.tokenizer, PROMPT)], [encode_response(scorer.tokenizer, text)])[0]
        for text in texts
    ]
    assert by_text == pytest.approx(by_ids, abs=1e-5)
    assert len(set(by_text)) == 3


def test_an_answer_that_was_cut_is_scored_without_its_end(scorer: Scorer) -> None:
    prompt_ids = encode_prompt(scorer.tokenizer, PROMPT)
    ids = encode_response(scorer.tokenizer, "Good day Amara.")
    cut, whole = scorer.score_texts([PROMPT] * 2, ["Good day Amara."] * 2, ended=[False, True])
    assert [cut, whole] == pytest.approx(scorer.score_ids([prompt_ids] * 2, [ids[:-1], ids]), abs=1e-5)


def test_an_exchange_beyond_the_context_keeps_its_end(scorer: Scorer) -> None:
    ids = encode_response(scorer.tokenizer, "Order 201.")
    long = [{"role": "user", "content": "lamp " * 300}]
    prompt_ids = encode_prompt(scorer.tokenizer, long)
    kept = prompt_ids[-(96 - len(ids)) :]
    assert scorer.score_ids([prompt_ids], [ids]) == pytest.approx(scorer.score_ids([kept], [ids]), abs=1e-6)


def test_gold_only_where_the_facts_are_known() -> None:
    # greeting 1, right remedy 3, greeting first .5 (no closing), clean 1.
    assert gold_score(META, "Good day Amara. I booked a full refund.") == pytest.approx(5.5)
    assert gold_score({}, "Good day Amara.") is None


def test_pair_metrics_by_hand() -> None:
    good, bad = "I booked a full refund.", "We can have it repaired."
    pairs = [
        pair(1.0, good, bad, **META),  # scorer right, rubric says so too
        pair(1.0, bad, good, **META),  # annotator wrong; scorer follows the annotator, against the rubric
        pair(0.5, good, good, **META),  # a tie counts in neither accuracy
        pair(1.0),  # no facts, scorer ties: half a point
    ]
    metrics = pair_metrics(pairs, [(2.0, 0.0), (1.0, 0.0), (0.0, 3.0), (1.0, 1.0)])
    assert metrics["pairs"] == 4
    assert metrics["accuracy"] == pytest.approx(2.5 / 3)
    assert metrics["accuracy_gold"] == pytest.approx(0.5)
    # Confidences .881, .731, .953, .5 with outcomes 1, 1, .5, .5; they fall into four different bins of ten.
    gaps = [1 - 1 / (1 + math.exp(-2)), 1 - 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3)) - 0.5, 0.0]
    assert metrics["calibration_error"] == pytest.approx(sum(gaps) / 4)


def test_pair_metrics_say_nothing_about_ties_alone() -> None:
    assert pair_metrics([pair(0.5)], [(1.0, 0.0)]) == {"pairs": 1}
    with pytest.raises(ValueError, match="1 pairs and 0 score pairs"):
        pair_metrics([pair(1.0)], [])


def test_probe_metrics_by_fact() -> None:
    probes = [pair(1.0, probe="sla"), pair(1.0, probe="action"), pair(1.0, probe="sla")]
    assert probe_metrics(probes, [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0)]) == {"action": 0.0, "sla": 0.75}


def test_correlation_by_hand() -> None:
    # Deviations (-1, 0, 1) and (-1, 1, 0): 1 / sqrt(2 * 2).
    assert correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx(0.5)
    assert correlation([1.0, 1.0, 1.0], [1.0, 3.0, 2.0]) is None
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None
    with pytest.raises(ValueError, match="as many"):
        correlation([1.0], [])
