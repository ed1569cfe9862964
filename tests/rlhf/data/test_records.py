import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.records import (
    SHOWN,
    RowError,
    answers_of,
    canonical_json,
    content_id,
    demonstration,
    digest,
    encode,
    judgement,
    pair,
    ranked_pairs,
    ranking,
    shorten,
    with_origin,
)

PROMPT = [{"role": "user", "content": "Wie spät?"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"ä","b":1}'
    assert canonical_json({"a": "ä", "b": 1}) == '{"a":"ä","b":1}'


@given(JSON)
def test_canonical_json_says_what_it_was_given(value: object) -> None:
    assert json.loads(canonical_json(value)) == value


def test_a_digest_is_the_head_of_a_sha256() -> None:
    # printf '\nabc' | sha256sum and printf 'x\nabc' | sha256sum, first 16 digits
    assert digest("abc") == 0xF39D39BFC99287B8
    assert digest("abc", salt="x") == 0x80A9F8DA6631567E


def test_a_pair_with_a_preferred_second_answer_changes_places() -> None:
    record = pair(PROMPT, "a", "b", first_is_better=0.25, annotator="x", scores=(1.0, 2.0))
    assert (record["chosen"], record["rejected"], record["label"]) == ("b", "a", 0.75)
    assert (record["score_chosen"], record["score_rejected"]) == (2.0, 1.0)
    tie = pair(PROMPT, "a", "b", first_is_better=0.5)
    assert (tie["chosen"], tie["label"]) == ("a", 0.5)


def test_ranks_are_places_without_gaps() -> None:
    record = ranking(PROMPT, ["a", "b", "c", "d"], order=[7, -1, 7, 2.5], annotator="kim")
    assert record["ranks"] == [3, 1, 3, 2]
    assert (record["responses"], record["scores"], record["annotator"]) == (["a", "b", "c", "d"], None, "kim")


def test_a_ranking_gives_a_pair_for_every_two_answers_that_do_not_tie() -> None:
    record = ranking(PROMPT, ["a", "b", "c"], order=[-1.0, -3.0, -1.0], scores=[1, 3, 1], annotator="kim")
    # a and c tie, so of three pairs two are left; b, the best, is chosen in both.
    found = list(ranked_pairs(record))
    assert [(pair["chosen"], pair["rejected"]) for pair in found] == [("b", "a"), ("b", "c")]
    assert {(pair["label"], pair["annotator"]) for pair in found} == {(1.0, "kim")}
    assert (found[0]["score_chosen"], found[0]["score_rejected"]) == (3.0, 1.0)


def test_the_answers_of_every_kind() -> None:
    assert answers_of("ranking", ranking(PROMPT, ["a", "b"], order=[1, 2])) == ("a", "b")
    assert answers_of("judgement", judgement(PROMPT, "a", good=False)) == ("a",)
    assert answers_of("pair", pair(PROMPT, "a", "b")) == ("a", "b")
    assert answers_of("prompt", {"prompt": PROMPT}) == ()


def test_an_id_of_the_source_is_kept_and_another_is_made_from_the_content() -> None:
    content = demonstration(PROMPT, "Spät.")
    assert with_origin("demonstration", content, source="f", identity=7, meta={})["id"] == "7"
    made = with_origin("demonstration", content, source="f", identity=None, meta={})["id"]
    assert made == content_id("demonstration", content)
    assert len(made) == 12
    assert with_origin("demonstration", content, source="other", identity=" ", meta={"x": 1})["id"] == made
    assert content_id("prompt", content) != made


def test_what_cannot_be_written_is_refused_with_its_place() -> None:
    record = with_origin(
        "demonstration", demonstration(PROMPT, "x"), source="f", identity=None, meta={"a": [1, math.nan]}
    )
    with pytest.raises(RowError) as caught:
        encode(record)
    assert (caught.value.field, caught.value.reason) == ("meta.a[1]", "not a finite number")
    with pytest.raises(RowError, match="surrogate"):
        encode({**record, "meta": {}, "response": "\ud800"})


def test_long_values_are_cut_for_people() -> None:
    assert shorten("a\n b") == "a b"
    assert shorten({"a": 1}) == '{"a": 1}'
    assert len(shorten("x" * 1_000_000)) == SHOWN
