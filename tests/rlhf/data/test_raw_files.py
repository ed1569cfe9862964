import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.raw_files import files_in, find_files, rows
from rlhf.data.records import RowError
from rlhf.errors import BadInput


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reasons(path: Path) -> list[tuple[int, str | dict[str, Any]]]:
    return [(number, row.reason if isinstance(row, RowError) else row) for number, row in rows(path)]


def test_lines_are_numbered_and_blank_ones_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}')
    assert reasons(path) == [(1, {"a": 1}), (3, {"a": 2})]


def test_arrays_gzip_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    wanted = [(1, {"a": "é"}), (2, {"a": 2})]
    array = json.dumps([{"a": "é"}, {"a": 2}], indent=2)
    lines = '{"a": "é"}\n{"a": 2}\n'
    assert reasons(write(tmp_path / "a.json", array)) == wanted
    assert reasons(write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))) == wanted
    assert reasons(write(tmp_path / "b.jsonl", b"\xef\xbb\xbf" + lines.encode())) == wanted
    assert reasons(write(tmp_path / "b.json.gz", gzip.compress(b"\xef\xbb\xbf" + array.encode()))) == wanted


def test_a_fault_in_one_line_spoils_only_that_line(tmp_path: Path) -> None:
    broken = [b'{"a": 1', b'{"a": "caf\xe9"}', b"[1]", b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 2}}', b"[" * 100_000]
    path = write(tmp_path / "a.jsonl", b"\n".join([b'{"ok": 1}', *broken, b'{"ok": 2}']))
    assert reasons(path) == [
        (1, {"ok": 1}),
        (2, "broken JSON"),
        (3, "not UTF-8"),
        (4, "not a JSON object"),
        (5, "a key stands twice"),
        (6, "a key stands twice"),
        (7, "JSON that cannot be read"),
        (8, {"ok": 2}),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"[]", "empty JSON array"),
        (b"\x89PNG\0\0", "binary file"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        (b'[{"a": "caf\xe9"}]', "byte 11 (0xe9) is not UTF-8"),
        (b'[\n{"a": 1},\n{"a" 2}]', ":3: broken JSON"),
        (gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "not a whole gzip file"),
    ],
)
def test_a_file_of_no_use_is_refused_in_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(BadInput) as caught:
        list(rows(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        list(rows(tmp_path / "none.jsonl"))


@given(content=st.binary(max_size=200))
def test_no_bytes_at_all_make_reading_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.mktemp("bytes") / "a.jsonl", content)
    try:
        found = list(rows(path))
    except BadInput:
        return
    assert all(isinstance(row, (dict, RowError)) for _, row in found)


def test_names_folders_and_patterns_are_found_once_and_in_order(tmp_path: Path) -> None:
    for name in (
        "b.jsonl",
        "a.json",
        "folder/two.jsonl",
        "folder/one.jsonl.gz",
        "folder/.hidden.jsonl",
        "folder/notes.md",
    ):
        write(tmp_path / name, "{}")
    found = [name for name, _ in find_files(tmp_path, ("folder/", "*.json*", "b.jsonl"))]
    assert found == ["folder/one.jsonl.gz", "folder/two.jsonl", "a.json", "b.jsonl"]
    assert [path.name for path in files_in(tmp_path / "folder")] == ["one.jsonl.gz", "two.jsonl"]


def test_a_name_that_is_not_there_says_what_is_and_how_to_add_it(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", "{}")
    with pytest.raises(BadInput) as caught:
        find_files(tmp_path, ("yours.jsonl",))
    assert "mine.jsonl" in str(caught.value)
    assert "ratchet ingest FILE --as yours" in str(caught.value)
    with pytest.raises(BadInput, match=r"validate\.files is empty"):
        find_files(tmp_path, ())


@pytest.mark.parametrize("name", ["../secret.jsonl", "a/../../secret.jsonl", "/etc/passwd"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    write(tmp_path / "secret.jsonl", "{}")
    (tmp_path / "raw").mkdir()
    with pytest.raises(BadInput, match="leads out"):
        find_files(tmp_path / "raw", (name,))


def test_links_cannot_leave_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "secret.jsonl", "{}")
    (tmp_path / "raw").mkdir()
    os.symlink(tmp_path / "secret.jsonl", tmp_path / "raw" / "link.jsonl")
    for name in ("link.jsonl", "*.jsonl"):
        with pytest.raises(BadInput, match="link that leads out"):
            find_files(tmp_path / "raw", (name,))
