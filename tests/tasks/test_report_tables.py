"""Numbers as people read them, and tables of data, stages and parameters."""

from pathlib import Path

import pytest

from tasks.report_tables import data_tables, parameter_sections, show_number, stage_rows
from tasks.timings import write_timing

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.123456, "0.1235"), (12, "12"), (7000.0, "7\N{NARROW NO-BREAK SPACE}000"), (123.456, "123.5"), (None, DASH),
     (float("nan"), DASH), ("text", "text"), (True, "True")],
)  # fmt: skip
def test_numbers(value: object, shown: str) -> None:
    assert show_number(value) == shown


def test_groups_of_numbers_get_columns_and_others_a_line_each() -> None:
    kept = {"pairs": {"train": 3, "test": 1}, "prompts": {"train": 2}}
    tables = data_tables({"leaks": 0, "kept": kept, "pairs": {"by": {"x": 1}, "n": 2}, "none": {}})
    assert [table["title"] for table in tables] == ["totals", "kept", "pairs"]
    assert tables[1]["columns"] == ["train", "test"]
    assert tables[1]["rows"][1] == {"name": "prompts", "cells": ["2", DASH]}
    assert tables[2]["rows"] == [{"name": "by / x", "cells": ["1"]}, {"name": "n", "cells": ["2"]}]


def test_stages_with_their_cost_and_output(tmp_path: Path) -> None:
    assert stage_rows(tmp_path) == []
    (tmp_path / "dvc.yaml").write_text("stages:\n  sft: {cmd: a, desc: learns}\n  ppo: {cmd: b}\n")
    outs = "[{path: data/models/sft, hash: md5, md5: 0123456789abcdef.dir}]"
    (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  sft: {{cmd: a, outs: {outs}}}\n")
    write_timing(tmp_path, "sft", seconds=12.5, peak_mb=300.0)
    assert stage_rows(tmp_path) == [
        {"name": "sft", "what": "learns", "seconds": 12.5, "peak_mb": 300.0, "output": "0123456789"},
        {"name": "ppo", "what": "", "seconds": None, "peak_mb": None, "output": None},
    ]


def test_parameters_by_section(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert parameter_sections(path) == []
    path.write_text("seed: 1\nppo: {kl_coef: 3e-6, nested: {clip: [1, 2]}}\n")
    assert parameter_sections(path) == [
        {"name": "all stages", "entries": [("seed", "1")]},
        {"name": "ppo", "entries": [("kl_coef", "3e-06"), ("nested.clip", "[1, 2]")]},
    ]
