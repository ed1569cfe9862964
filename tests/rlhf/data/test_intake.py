import json
from pathlib import Path

import pytest

from rlhf.data.detect import Detected
from rlhf.data.intake import Refused, Row, formats, read
from rlhf.errors import BadInput


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_good_and_bad_rows_come_in_order_with_their_places(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "Q", "response": "A"}, "{", {"prompt": "Q"})
    good, broken, incomplete = read(path, "set/a.jsonl", Detected("demonstration", ""))
    assert isinstance(good, Row)
    assert (good.kind, good.record["source"], good.file, good.line) == (
        "demonstration",
        "set/a.jsonl",
        "set/a.jsonl",
        1,
    )
    assert json.loads(good.text) == good.record
    assert isinstance(broken, Refused)
    assert (broken.line, broken.field, broken.reason) == (2, "row", "broken JSON")
    assert incomplete == Refused("set/a.jsonl", 3, "response", "null", "missing field")


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": score}
        for score in (float("nan"), 1.0, float("inf"))
    ]
    found = list(read(write(tmp_path / "a.jsonl", *rows), "a", Detected("preference", "")))
    assert [getattr(row, "reason", "good") for row in found] == ["not a finite number", "good", "not a finite number"]


def test_a_file_whose_rows_are_all_wrong_is_refused_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "Q"}, {"question": "R"})
    with pytest.raises(BadInput, match=r"none of its 2 rows could be read as alpaca .*instruction: missing field"):
        list(read(path, "a", Detected("alpaca", "it was asked for")))


def test_formats_are_forced_by_file_or_folder(tmp_path: Path) -> None:
    files = []
    for name in ("one.jsonl", "set/two.jsonl", "set/three.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        files.append((name, write(tmp_path / name, {"prompt": "Q", "response": "A"})))
    found = formats(files, {"set/": "prompt"})
    assert [(name, detected.format) for name, _, detected in found] == [
        ("one.jsonl", "demonstration"),
        ("set/two.jsonl", "prompt"),
        ("set/three.jsonl", "prompt"),
    ]
    with pytest.raises(BadInput, match=r"names 'four\.jsonl', which is not among the files"):
        formats(files, {"four.jsonl": "prompt"})
