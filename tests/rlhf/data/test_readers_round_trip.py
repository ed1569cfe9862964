"""What is written in a format is read back as the same records, whatever the texts and however the file is packed."""

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.detect import detect
from rlhf.data.intake import Row, read
from rlhf.data.readers import READERS

Turns = list[dict[str, str]]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() != ""
)
ANSWERS = st.lists(TEXT, min_size=3, max_size=3, unique_by=str.strip)
TALKS = st.lists(TEXT, min_size=1, max_size=5).filter(lambda said: len(said) % 2 == 1)


def turns(said: list[str]) -> Turns:
    """A conversation in which user and assistant take turns, the user first."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]


def answered(said: list[str], answer: str) -> Turns:
    return [*turns(said), {"role": "assistant", "content": answer}]


def sharegpt(messages: Turns) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in messages]


def alpaca(said: list[str]) -> dict[str, Any]:
    history = [[said[place], said[place + 1]] for place in range(0, len(said) - 1, 2)]
    return {"instruction": said[-1], "input": "", "history": history}


PAIR = {"label": 1.0, "annotator": None, "score_chosen": None, "score_rejected": None}
FORMS: dict[str, Callable[[list[str], list[str]], tuple[dict[str, Any], str, dict[str, Any]]]] = {
    "comparison": lambda said, a: (
        {"prompt": turns(said), "response_a": a[0], "response_b": a[1], "label": 0},
        "pair",
        {**PAIR, "chosen": a[1], "rejected": a[0]},
    ),
    "preference": lambda said, a: (
        {"chosen": answered(said, a[0]), "rejected": answered(said, a[1]), "label": 0.75, "annotator": "x"},
        "pair",
        {**PAIR, "chosen": a[0], "rejected": a[1], "label": 0.75, "annotator": "x"},
    ),
    "probe": lambda said, a: (
        {"prompt": turns(said), "chosen": a[0], "rejected": a[1], "probe": "name"},
        "probe",
        {**PAIR, "chosen": a[0], "rejected": a[1], "meta": {"probe": "name"}},
    ),
    "sharegpt_preference": lambda said, a: (
        {
            "conversations": sharegpt(turns(said)),
            "chosen": {"from": "gpt", "value": a[0]},
            "rejected": {"from": "gpt", "value": a[1]},
        },
        "pair",
        {**PAIR, "chosen": a[0], "rejected": a[1]},
    ),
    "alpaca_preference": lambda said, a: (
        {**alpaca(said), "chosen": a[0], "rejected": a[1]},
        "pair",
        {**PAIR, "chosen": a[0], "rejected": a[1]},
    ),
    "scored_completions": lambda said, a: (
        {"prompt": turns(said), "completions": [{"response": text, "score": len(text)} for text in a]},
        "ranking",
        {"responses": a, "scores": [float(len(text)) for text in a]},
    ),
    "ranking": lambda said, a: (
        {"prompt": turns(said), "responses": a, "ranks": [2, 1, 2]},
        "ranking",
        {"responses": a, "ranks": [2, 1, 2], "scores": None},
    ),
    "judgement": lambda said, a: (
        {"prompt": turns(said), "completion": a[0], "label": False},
        "judgement",
        {"response": a[0], "good": False},
    ),
    "sharegpt": lambda said, a: (
        {"conversations": sharegpt(answered(said, a[0]))},
        "demonstration",
        {"response": a[0]},
    ),
    "alpaca": lambda said, a: ({**alpaca(said), "output": a[0]}, "demonstration", {"response": a[0]}),
    "messages": lambda said, a: ({"messages": answered(said, a[0])}, "demonstration", {"response": a[0]}),
    "demonstration": lambda said, a: ({"prompt": turns(said), "response": a[0]}, "demonstration", {"response": a[0]}),
    "prompt": lambda said, a: ({"prompt": turns(said), "more": a}, "prompt", {"meta": {"more": a}}),
}
"""For each format a row, and the kind and content of its record."""


def packed(rows: list[dict[str, Any]], form: str, *, ascii: bool) -> bytes:
    if form.startswith("jsonl"):
        text = "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in rows)
    else:
        text = json.dumps(rows, ensure_ascii=ascii)
    return gzip.compress(text.encode(), 1) if form.endswith("gz") else text.encode()


def test_every_format_takes_part() -> None:
    assert {*FORMS, "hh"} == set(READERS)  # transcripts lose blanks at their turns' ends; see test_conversations.py


@pytest.mark.parametrize("format", FORMS)
@settings(max_examples=25, deadline=None)
@given(
    talks=st.lists(st.tuples(TALKS, ANSWERS), min_size=1, max_size=4),
    form=st.sampled_from(["jsonl", "json", "jsonl.gz", "json.gz"]),
    ascii=st.booleans(),
)
def test_what_is_written_is_read(format: str, talks: list[tuple[list[str], list[str]]], form: str, ascii: bool) -> None:
    written = [FORMS[format](*talk) for talk in talks]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file.{form}"
        path.write_bytes(packed([row for row, _, _ in written], form, ascii=ascii))
        found = list(read(path, path.name, detect(path)))
    assert all(isinstance(row, Row) for row in found), found
    rows = [row for row in found if isinstance(row, Row)]
    assert [row.kind for row in rows] == [kind for _, kind, _ in written]
    for row, (_, _, content), (said, _) in zip(rows, written, talks, strict=True):
        assert row.record["prompt"] == turns(said)
        assert {name: row.record[name] for name in content} == content
        assert row.record["source"] == path.name
        assert json.loads(row.text) == row.record
