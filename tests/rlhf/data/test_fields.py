import pytest

from rlhf.data.fields import Fields, has, instruction_prompt
from rlhf.data.records import RowError


def test_what_nobody_takes_is_kept() -> None:
    fields = Fields({"id": 3, "prompt": "Q", "score": "high", "label": True, "topic": None, "meta": {"a": 1}})
    assert fields.need("prompt") == "Q"
    # Neither a text nor a truth value is a number: they stay for `meta`.
    assert fields.take_number("score") is None
    assert fields.take_number("label") is None
    kind, record = fields.finish("prompt", {"prompt": []})
    assert (kind, record["id"]) == ("prompt", "3")
    assert record["meta"] == {"a": 1, "score": "high", "label": True}


def test_a_needed_column_that_is_null_is_missing() -> None:
    with pytest.raises(RowError, match="prompt: missing field"):
        Fields({"prompt": None}).need("prompt")


def test_columns_are_looked_up_by_name() -> None:
    assert has({"a": None, "b": 1}, "a", "b")
    assert not has({"a": 1}, "a", "b")


def test_an_instruction_with_all_that_may_come_before_it() -> None:
    row = {"instruction": "Add", "input": "1 2", "system": "Short.", "history": [["Hi", "Hello"]]}
    assert [(turn["role"], turn["content"]) for turn in instruction_prompt(Fields(row))] == [
        ("system", "Short."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add\n\n1 2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({}, "instruction"),
        ({"instruction": 3}, "instruction"),
        ({"instruction": "a", "history": [[1]]}, "history[0]"),
    ],
)
def test_what_is_no_instruction(row: dict[str, object], field: str) -> None:
    with pytest.raises(RowError) as caught:
        instruction_prompt(Fields(row))
    assert caught.value.field == field
