import argparse
import json
from pathlib import Path

import pytest

from flows.output import cell_text, duration, relative, show, size, table


def test_table_puts_numbers_right_and_words_left() -> None:
    lines = table(("stage", "seconds"), [("sft", 72.5), ("evaluate", None), ("ppo", 7)]).splitlines()
    assert lines == [
        "stage     seconds",
        "--------  -------",
        "sft          72.5",
        "evaluate        -",
        "ppo             7",
    ]


def test_table_without_heads_and_with_an_indent() -> None:
    assert table(("", ""), [("a", "b")], indent=2) == "  a  b"
    assert table(("a",), []) == "a\n-"


def test_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="has 1 cells, wanted 2"):
        table(("a", "b"), [("x",)])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (True, "yes"), (False, "no"), (3, "3"), (0.123456, "0.1235"), (123456.7, "123457"), ("x", "x")],
)
def test_cells(value: object, text: str) -> None:
    assert cell_text(value) == text


def test_a_cell_that_is_not_a_number_says_so() -> None:
    assert cell_text(float("nan")) == "nan"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (512, "512 B"), (4000, "4.0 kB"), (1_234_567_890, "1.2 GB"), (5e12, "5.0 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


def test_paths_are_named_from_the_root(tmp_path: Path) -> None:
    assert relative(tmp_path / "data" / "raw", tmp_path) == "data/raw"
    assert relative(Path("/elsewhere"), tmp_path) == "/elsewhere"


def test_show_writes_one_document_with_json(capsys: pytest.CaptureFixture[str]) -> None:
    document = {"path": Path("data"), "nan": float("nan"), "rows": ({"a": 1},), "names": {"b", "a"}, "none": None}
    show(argparse.Namespace(json=True), document, "text")
    out = json.loads(capsys.readouterr().out)
    assert out == {"path": "data", "nan": None, "rows": [{"a": 1}], "names": ["a", "b"], "none": None}


def test_show_writes_text_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    show(argparse.Namespace(json=False), {"a": 1}, ["one", "two"])
    assert capsys.readouterr().out == "one\ntwo\n"
