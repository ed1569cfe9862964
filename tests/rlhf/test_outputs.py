import json
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from rlhf.outputs import atomic_writer, read_jsonl, rounded, write_csv, write_jsonl, write_metrics


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_writer(path) as stream:
        stream.writelines(["half", 1])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_are_rounded_to_six_digits_and_nan_becomes_null(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"a": {"b": 1.23456789, "n": float("nan")}, "c": (1, 2.0)})
    assert json.loads((tmp_path / "m.json").read_text()) == {"a": {"b": 1.23457, "n": None}, "c": [1, 2.0]}
    assert rounded(1234567.0) == 1234570.0


def test_jsonl_round_trip_keeps_unicode_and_sorts_keys(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    assert write_jsonl(path, [{"b": "ü", "a": 1}]) == 1
    assert path.read_bytes() == '{"a": 1, "b": "ü"}\n'.encode()
    assert list(read_jsonl(path)) == [{"a": 1, "b": "ü"}]


@pytest.mark.parametrize(("text", "message"), [("{oops\n", ":1: not JSON"), ("[1]\n", "wanted a JSON object")])
def test_a_broken_row_is_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        list(read_jsonl(path))


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_csv_has_step_first_and_empty_cells_for_missing_columns(tmp_path: Path) -> None:
    write_csv(tmp_path / "c.csv", [{"step": 1, "a": 0.12345678}, {"b": float("nan"), "step": 2}])
    assert (tmp_path / "c.csv").read_text() == "step,a,b\n1,0.123457,\n2,,\n"
