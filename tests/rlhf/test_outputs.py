import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from rlhf.outputs import atomic_writer, folder_writer, read_jsonl, rounded, write_csv, write_jsonl, write_metrics


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(TypeError), atomic_writer(path) as stream:
        stream.writelines(["half", 1])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_beside_a_file_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a.json.{dead.pid}-x1", f".a.json.{os.getppid()}-x2", f".b.json.{dead.pid}-x3", ".a.json.old-x4"):
        (tmp_path / name).write_text("half")
    (tmp_path / f".a.json.{dead.pid}-x5").mkdir()
    write_metrics(tmp_path / "a.json", {})
    kept = {"a.json", f".a.json.{os.getppid()}-x2", f".b.json.{dead.pid}-x3", ".a.json.old-x4"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/old").write_text("old")
    with pytest.raises(FileExistsError), folder_writer(tmp_path / "model") as folder:
        (folder / "new").mkdir(), (folder / "new").mkdir()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/old"]
    with folder_writer(tmp_path / "model") as folder:
        (folder / "new").write_text("new")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["model", "model/new"]
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_a_write_that_the_system_refuses_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_jsonl(path, ({"text": "x" * 100} for _ in range(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(path)
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
