from typing import Any

import pytest

from rlhf.data.contracts import Limits, check
from rlhf.data.intake import Row
from rlhf.data.records import Kind, encode, judgement, pair, ranking, with_origin

LIMITS = Limits(prompt_chars=20, response_chars=10)
ASK = [{"role": "user", "content": "Q"}]


def row(kind: Kind, content: dict[str, Any], line: int = 1, meta: dict[str, Any] | None = None) -> Row:
    record = with_origin(kind, content, source="f", identity=None, meta=meta or {})
    return Row(kind, record, encode(record), "f", line)


def failures(*rows: Row) -> list[tuple[int, str, str]]:
    good, refused = check(rows, LIMITS)
    assert len(good) + len({failure.line for failure in refused}) == len(rows)
    return [(failure.line, failure.field, failure.reason) for failure in refused]


def test_good_rows_of_every_kind_pass_in_order() -> None:
    rows = [
        row("pair", pair(ASK, "A", "B"), 1),
        row("demonstration", {"prompt": ASK, "response": "A"}, 2),
        row("prompt", {"prompt": ASK}, 3),
        row("probe", pair(ASK, "A", "B"), 4, {"probe": "order"}),
        row("pair", pair(ASK, "A", "B", first_is_better=0.5), 5),
        row("ranking", ranking(ASK, ["A", "B", "C"], order=[1, 2, 2]), 6),
        row("judgement", judgement(ASK, "A", good=False), 7),
        row("prompt", {"prompt": ASK}, 8, {"unlike": True}),
        row("prompt", {"prompt": ASK}, 9, {"unlike": False}),
    ]
    assert check(rows, LIMITS) == (rows, [])


@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        (pair(ASK, "", "B"), "chosen", "empty text"),
        (pair(ASK, "A", " \n"), "rejected", "empty text"),
        (pair(ASK, "A", "x" * 11), "rejected", "longer than 10 characters"),
        (pair(ASK, "A", "caf\ufffd"), "rejected", "lost characters"),
        (pair(ASK, "A ", " A"), "rejected", "chosen equals rejected"),
        (pair(ASK, "A", "B", first_is_better=1.5), "label", "not in [0.5, 1]"),
        (
            pair([*ASK, {"role": "assistant", "content": "x"}], "A", "B"),
            "prompt.last_role",
            "does not end with the user",
        ),
        (pair([{"role": "user", "content": "x" * 21}], "A", "B"), "prompt", "longer than 20 characters"),
        (pair([{"role": "user", "content": " "}, *ASK], "A", "B"), "prompt.empty_turns", "empty turn"),
    ],
)
def test_each_clause_of_the_contract(content: dict[str, Any], field: str, reason: str) -> None:
    assert failures(row("pair", content)) == [(1, field, reason)]


@pytest.mark.parametrize(
    ("responses", "field", "reason"),
    [
        (["A"], "responses.number", "fewer than two responses"),
        (["A", " "], "responses.shortest", "empty text"),
        (["A", "x" * 11], "responses.longest", "longer than 10 characters"),
        (["A", "B", "B "], "responses.equal", "two responses are equal"),
        (["A", "caf\ufffd"], "responses", "lost characters"),
    ],
)
def test_each_answer_of_a_ranking_is_held_to_the_contract(responses: list[str], field: str, reason: str) -> None:
    content = ranking(ASK, responses, order=list(range(len(responses))))
    assert failures(row("ranking", content)) == [(1, field, reason)]


def test_a_judged_answer_is_held_to_the_contract() -> None:
    assert failures(row("judgement", judgement(ASK, " ", good=True))) == [(1, "response", "empty text")]


@pytest.mark.parametrize("mark", ["true", 1, 0, "yes", []])
def test_a_mark_of_unlike_is_true_or_false(mark: object) -> None:
    found = failures(row("prompt", {"prompt": ASK}, meta={"unlike": mark}))
    assert found == [(1, "meta.unlike", "neither true nor false")]


def test_what_would_be_trained_on_cannot_be_unlike() -> None:
    found = failures(row("pair", pair(ASK, "A", "B"), meta={"unlike": True}))
    assert found == [(1, "meta.unlike", "only prompts can be unlike the others")]
    assert failures(row("pair", pair(ASK, "A", "B"), meta={"unlike": 3})) == []


def test_a_probe_says_what_it_probes() -> None:
    assert failures(row("probe", pair(ASK, "A", "B"))) == [(1, "meta.probe", "empty text")]


def test_a_row_may_fail_twice_and_the_others_stay() -> None:
    bad = row("pair", pair(ASK, "", "x" * 11), 7)
    good = row("pair", pair(ASK, "A", "B"), 8)
    kept, refused = check([bad, good], LIMITS)
    assert kept == [good]
    assert [(failure.line, failure.field) for failure in refused] == [(7, "chosen"), (7, "rejected")]


def test_a_giant_value_is_shown_short() -> None:
    _, refused = check([row("demonstration", {"prompt": ASK, "response": "x" * 1_000_000})], LIMITS)
    assert len(refused[0].value) <= 80
