"""Rankings and single judgements, row by row."""

from typing import Any

import pytest

from rlhf.data.fields import Found
from rlhf.data.records import RowError
from rlhf.data.verdict_readers import is_judgement, read_judgement, read_ranking, read_scored_completions

ASK = [{"role": "user", "content": "Q"}]


def only(found: Found, kind: str) -> dict[str, Any]:
    ((read_as, record),) = found
    assert read_as == kind
    return record


def test_ultrafeedback_rows_are_rankings() -> None:
    row = {
        "source": "evol_instruct",
        "instruction": "Q",
        "models": ["x", "y", "z"],
        "completions": [
            {"model": "x", "response": "A", "overall_score": 10.0, "fine-grained_score": 1.25, "critique": "poor"},
            {"model": "y", "response": "B", "overall_score": 7.0, "fine-grained_score": 4.0, "critique": "good"},
            {"model": "z", "response": "C", "overall_score": 6.5, "fine-grained_score": 4.0, "critique": "good"},
        ],
    }
    record = only(read_scored_completions(row), "ranking")
    assert record["prompt"] == ASK
    # The mean over criteria decides and not the overall score, whose 10 stands for a 1 in these data.
    assert (record["responses"], record["ranks"], record["scores"]) == (["A", "B", "C"], [2, 1, 1], [1.25, 4.0, 4.0])
    assert record["meta"]["models"] == ["x", "y", "z"]
    assert record["meta"]["completions"][0] == {"model": "x", "overall_score": 10.0, "critique": "poor"}


def test_the_score_is_one_that_all_answers_have() -> None:
    completions = [
        {"response": "A", "overall_score": 5.0, "fine-grained_score": None},
        {"response": "B", "overall_score": 8, "fine-grained_score": 4.0},
    ]
    record = only(read_scored_completions({"prompt": "Q", "completions": completions}), "ranking")
    assert (record["ranks"], record["scores"]) == ([2, 1], [5.0, 8.0])


def test_answers_with_ranks() -> None:
    answers = [{"answer": "A", "model": "x", "rank": 3.0}, {"answer": "B", "model": "y", "rank": 1.0}]
    prompt = "\n\nHuman: Q\n\nAssistant: "
    record = only(read_scored_completions({"prompt": prompt, "answers": answers}), "ranking")
    assert (record["prompt"], record["ranks"], record["scores"]) == (ASK, [2, 1], None)
    assert record["meta"] == {"answers": [{"model": "x"}, {"model": "y"}]}


@pytest.mark.parametrize(
    ("given", "ranks", "scores"),
    [
        ({"ranks": [2, 1, 2]}, [2, 1, 2], None),
        ({"scores": [0.5, 9, 0.5]}, [2, 1, 2], [0.5, 9.0, 0.5]),
        # Both: ranks decide, for a rank may break a tie of rounded scores.
        ({"ranks": [3, 1, 2], "scores": [4, 5, 4]}, [3, 1, 2], [4.0, 5.0, 4.0]),
    ],
)
def test_plain_rankings(given: dict[str, Any], ranks: list[int], scores: list[float] | None) -> None:
    row = {"prompt": "Q", "responses": ["A", "B", "C"], "annotator": "kim", "topic": "x", **given}
    record = only(read_ranking(row), "ranking")
    assert (record["ranks"], record["scores"], record["annotator"]) == (ranks, scores, "kim")
    assert record["meta"] == {"topic": "x"}


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({"responses": ["A", "B"]}, "ranks", "missing field"),
        ({"responses": ["A", "B"], "ranks": [1]}, "ranks", "not one number for each response"),
        ({"responses": ["A", "B"], "ranks": [1, True]}, "ranks", "not a number"),
        ({"responses": ["A", "B"], "scores": [1, float("nan")]}, "scores", "not a finite number"),
        ({"responses": "A", "ranks": [1]}, "responses", "not a list of answers"),
        ({"responses": ["A", None], "ranks": [1, 2]}, "responses[1]", "missing field"),
    ],
)
def test_rankings_that_cannot_be_read(row: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        read_ranking({"prompt": "Q", **row})
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_answers_without_a_common_score_cannot_be_ranked() -> None:
    completions = [{"response": "A", "overall_score": 5.0}, {"response": "B", "rating": 3}]
    with pytest.raises(RowError, match="not all have one of rank, fine-grained_score"):
        read_scored_completions({"prompt": "Q", "completions": completions})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A", "label": False},
        {"prompt": ASK, "completion": [{"role": "assistant", "content": "A"}], "label": False},
        {"prompt": "Q", "response": "A", "good": False},
        {"prompt": "Q", "completion": "A", "label": 0},
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "completion": " A", "label": False},
        {"messages": [*ASK, {"role": "assistant", "content": "A"}], "label": False},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "label": False},
        {"instruction": "Q", "input": "", "output": "A", "kto_tag": False},
    ],
)
def test_judgements_in_all_forms(row: dict[str, Any]) -> None:
    assert is_judgement(row)
    record = only(read_judgement({**row, "annotator": "kim", "topic": "x"}), "judgement")
    assert (record["prompt"], record["response"], record["good"]) == (ASK, "A", False)
    assert (record["annotator"], record["meta"]) == ("kim", {"topic": "x"})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "completion": "A", "label": 3},
        {"prompt": "Q", "completion": "A", "label": "true"},
        {"prompt": "Q", "label": True},
        {"prompt": "Q", "completion": "A", "chosen": "A", "rejected": "B", "label": 1},
    ],
)
def test_what_is_no_judgement(row: dict[str, Any]) -> None:
    assert not is_judgement(row)


def test_a_row_without_a_verdict_is_refused_where_judgements_are_read() -> None:
    with pytest.raises(RowError, match="label: neither true nor false"):
        read_judgement({"prompt": "Q", "completion": "A", "label": 2})
