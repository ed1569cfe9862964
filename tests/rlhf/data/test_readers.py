"""Each reader on a small row written here, and on the real files beside the repository."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.detect import detect
from rlhf.data.intake import Refused, Row, read
from rlhf.data.readers import READERS
from rlhf.data.records import RowError

ASK = [{"role": "user", "content": "Q"}]
Record = dict[str, Any]


def one(format: str, row: Record) -> tuple[str, Record]:
    assert READERS[format].fits(row)
    (found,) = READERS[format].read(row)
    return found


def test_plain_preferences_keep_id_and_leftovers() -> None:
    kind, record = one(
        "preference", {"id": "7", "prompt": "Q", "chosen": "A", "rejected": "B", "topic": "x", "label": "human"}
    )
    assert kind == "pair"
    assert record["id"] == "7"
    assert record["prompt"] == ASK
    assert (record["chosen"], record["rejected"], record["label"], record["annotator"]) == ("A", "B", 1.0, None)
    assert record["meta"] == {"topic": "x", "label": "human"}


def test_conversational_preferences_in_both_forms() -> None:
    answers = {"chosen": [{"role": "assistant", "content": "A"}], "rejected": [{"role": "assistant", "content": "B"}]}
    explicit = one("preference", {"prompt": ASK, **answers})[1]
    implicit = one("preference", {name: [*ASK, *turns] for name, turns in answers.items()})[1]
    both = one("preference", {"prompt": "Q", **{name: [*ASK, *turns] for name, turns in answers.items()}})[1]
    for record in (explicit, implicit, both):
        assert (record["prompt"], record["chosen"], record["rejected"]) == (ASK, "A", "B")


def test_scores_soft_labels_and_annotators_are_understood() -> None:
    row = {
        "prompt": "Q",
        "chosen": "A",
        "rejected": "B",
        "label": 0.8,
        "annotator": "kim",
        "score_chosen": 4,
        "score_rejected": 1,
    }
    record = one("preference", row)[1]
    assert (record["label"], record["annotator"]) == (0.8, "kim")
    assert (record["score_chosen"], record["score_rejected"], record["meta"]) == (4.0, 1.0, {})


@pytest.mark.parametrize(
    ("label", "chosen", "certainty"),
    [(1, "A", 1.0), (0, "B", 1.0), (0.5, "A", 0.5), ("b", "B", 1.0), ("tie", "A", 0.5)],
)
def test_comparisons_put_the_better_answer_first(label: object, chosen: str, certainty: float) -> None:
    row = {"prompt": "Q", "response_a": "A", "response_b": "B", "label": label, "score_a": 1.0, "score_b": 2.0}
    kind, record = one("comparison", row)
    assert (kind, record["chosen"], record["label"]) == ("pair", chosen, certainty)
    assert record["score_chosen"] == (1.0 if chosen == "A" else 2.0)


@pytest.mark.parametrize(
    ("format", "row", "field", "reason"),
    [
        (
            "comparison",
            {"prompt": "Q", "response_a": "A", "response_b": "B", "label": float("nan")},
            "label",
            "not a finite number",
        ),
        ("comparison", {"prompt": "Q", "response_a": "A", "response_b": "B", "label": 2}, "label", "not in [0, 1]"),
        ("comparison", {"prompt": "Q", "response_a": "A", "response_b": "B", "label": True}, "label", "not a number"),
        ("comparison", {"prompt": "Q", "response_a": "A", "label": 1}, "response_b", "missing field"),
        ("preference", {"prompt": "Q", "chosen": "A"}, "rejected", "missing field"),
        ("preference", {"prompt": "Q", "chosen": "A", "rejected": "B", "label": 0.2}, "label", "not in [0.5, 1]"),
        (
            "preference",
            {"prompt": "Q", "chosen": "A", "rejected": "B", "label": float("nan")},
            "label",
            "not in [0.5, 1]",
        ),
        ("preference", {"prompt": "Q", "chosen": 3, "rejected": "B"}, "chosen[0]", "not a message"),
        ("demonstration", {"prompt": "Q"}, "response", "missing field"),
        ("demonstration", {"prompt": None, "response": "A"}, "prompt", "missing field"),
        ("alpaca", {"instruction": 3, "output": "A"}, "instruction", "not text"),
        ("alpaca", {"instruction": "Q", "output": "A", "history": ["x"]}, "history[0]", "not a question and an answer"),
        ("hh", {"chosen": "Q", "rejected": "B"}, "chosen", "not a transcript of Human and Assistant turns"),
        ("messages", {"messages": "Q"}, "messages", "not a list of messages"),
    ],
)
def test_a_row_that_cannot_be_read_says_where_and_why(format: str, row: Record, field: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        READERS[format].read(row)
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_transcripts() -> None:
    start = "\n\nHuman: Q\n\nAssistant: A1\n\nHuman: Q2\n\nAssistant:"
    kind, record = one("hh", {"chosen": f"{start} good", "rejected": f"{start} bad"})
    assert kind == "pair"
    assert [message["role"] for message in record["prompt"]] == ["user", "assistant", "user"]
    assert (record["chosen"], record["rejected"]) == ("good", "bad")


def test_transcript_prompts_lose_the_space_before_the_answer() -> None:
    row = {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"}
    record = one("preference", row)[1]
    assert (record["prompt"], record["chosen"], record["rejected"]) == (ASK, "A", "B")
    assert one("demonstration", {"prompt": row["prompt"], "response": " A"})[1]["response"] == "A"
    assert one("demonstration", {"prompt": "Q", "response": " A"})[1]["response"] == " A"


def test_alpaca_with_input_system_and_history() -> None:
    row = {"instruction": "Q", "input": "I", "output": "A", "system": "S", "history": [["q", "a"]]}
    kind, record = one("alpaca", row)
    assert kind == "demonstration"
    assert [message["content"] for message in record["prompt"]] == ["S", "q", "a", "Q\n\nI"]
    assert record["response"] == "A"
    assert record["meta"] == {}


def test_alpaca_preferences_give_a_pair_and_a_demonstration() -> None:
    row = {"instruction": "Q", "input": "", "output": "O", "chosen": "A", "rejected": "B"}
    found = READERS["alpaca_preference"].read(row)
    assert [kind for kind, _ in found] == ["pair", "demonstration"]
    assert found[1][1]["response"] == "O"
    assert found[0][1]["prompt"] == found[1][1]["prompt"] == ASK


def test_sharegpt() -> None:
    turns = [{"from": "human", "value": "Q"}]
    answers = {"chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}
    record = one("sharegpt_preference", {"conversations": turns, **answers})[1]
    assert (record["prompt"], record["chosen"], record["rejected"]) == (ASK, "A", "B")
    kind, whole = one("sharegpt", {"conversations": [*turns, answers["chosen"]]})
    assert (kind, whole["prompt"], whole["response"]) == ("demonstration", ASK, "A")


def test_messages_are_a_demonstration_or_a_prompt() -> None:
    kind, record = one("messages", {"messages": [*ASK, {"role": "assistant", "content": "A"}]})
    assert (kind, record["prompt"], record["response"]) == ("demonstration", ASK, "A")
    assert one("messages", {"messages": ASK})[0] == "prompt"


def test_prompts_and_completions() -> None:
    assert one("prompt", {"prompt": "Q", "topic": "x"}) == (
        "prompt",
        {"id": one("prompt", {"prompt": ASK})[1]["id"], "prompt": ASK, "source": "", "meta": {"topic": "x"}},
    )
    assert one("demonstration", {"prompt": "Q", "completion": "A"})[1]["response"] == "A"


def test_a_judgement_fits_its_own_reader_only() -> None:
    for row in ({"messages": ASK, "label": True}, {"prompt": "Q", "completion": "A", "label": False}):
        assert [name for name, reader in READERS.items() if reader.fits(row)] == ["judgement"]


def test_a_canonical_record_survives_being_read_again(tmp_path: Path) -> None:
    record = one(
        "comparison",
        {"id": "p", "prompt": "Q", "response_a": "A", "response_b": "B", "label": 0, "annotator": "kim", "n": 1},
    )[1]
    probe = one("probe", {"prompt": "Q", "chosen": "A", "rejected": "B", "probe": "order"})[1]
    assert probe["meta"] == {"probe": "order"}
    for name, original in (("preference", record), ("probe", probe)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(original))
        assert detect(path).format == name
        (row,) = read(path, path.name, detect(path))
        assert isinstance(row, Row)
        assert row.record == {**original, "source": path.name, "meta": {**original["meta"], "source": ""}}


REAL = [
    ("hh_harmless/test.jsonl.gz", "hh", {"pair": 2307, "refused": 5}),
    (
        "instruction_pref/instruction-data-with-preference.json",
        "alpaca_preference",
        {"pair": 1100, "demonstration": 1100},
    ),
    ("instruction_pref/instruction-data.json", "alpaca", {"demonstration": 1100}),
    ("instruction_pref/pairs.jsonl", "preference", {"pair": 1100}),
    ("instruction_pref/sft.jsonl", "demonstration", {"demonstration": 1100}),
    ("llamafactory_demo/dpo_en_demo.json", "sharegpt_preference", {"pair": 300}),
    ("llamafactory_demo/alpaca_en_demo.json", "alpaca", {"demonstration": 999}),
    ("llamafactory_demo/kto_en_demo.json", "judgement", {"judgement": 300}),
    ("oasst_en100/pairs.jsonl", "preference", {"pair": 754}),
    ("oasst_en100/sft.jsonl", "demonstration", {"demonstration": 212}),
]


@pytest.mark.shared
@pytest.mark.parametrize(("name", "format", "counts"), REAL)
def test_real_files_are_recognised_and_read(shared: Path, name: str, format: str, counts: dict[str, int]) -> None:
    path = shared / "data" / name
    detected = detect(path)
    assert detected.format == format
    found = list(read(path, name, detected))
    assert Counter("refused" if isinstance(row, Refused) else row.kind for row in found) == counts
    for row in found:
        if isinstance(row, Row):
            assert [message["role"] for message in row.record["prompt"]][-1] == "user"
            assert not any("\n\nHuman:" in message["content"] for message in row.record["prompt"])


@pytest.mark.shared
def test_the_five_transcripts_that_part_early_are_the_refused_ones(shared: Path) -> None:
    path = shared / "data" / "hh_harmless" / "test.jsonl.gz"
    refused = [row for row in read(path, "hh", detect(path)) if isinstance(row, Refused)]
    assert [row.line for row in refused] == [1255, 1689, 1951, 1953, 2037]
    assert {row.reason for row in refused} == {"the conversations part before the last answer"}
