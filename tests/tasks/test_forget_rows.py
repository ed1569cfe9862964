import gzip
import json
from pathlib import Path

import pytest

from rlhf.data.records import canonical_json
from rlhf.errors import BadInput
from tasks.forget_rows import Wanted, find_rows, parse_where, write_without

PAIR = {"prompt": "Where is it?", "chosen": "Here.", "rejected": "No."}
ROWS = [
    {**PAIR, "id": "a", "meta": {"user": 17, "tags": ["x", "y"]}},
    {**PAIR, "id": 2, "user": "anna"},
    {**PAIR, "prompt": "Where was it?", "user": "bob"},
]


def lines(path: Path, *, end: str = "\n") -> Path:
    path.write_bytes(end.join(json.dumps(row) for row in ROWS).encode() + end.encode())
    return path


def ids(*names: str) -> Wanted:
    return Wanted(ids=frozenset(names))


def test_rows_are_found_by_their_id_and_by_the_id_that_validate_gives(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl")
    found = find_rows(path, ids("a", "2", "nobody"))
    assert (found.numbers, found.ids, found.total) == ({1, 2}, {"a", "2"}, 3)
    prompt = canonical_json([{"role": "user", "content": "Where is it?"}])
    assert found.contents == {prompt: {"Here.", "No."}}
    (made,) = find_rows(path, Wanted(field="user", value="bob")).ids
    assert len(made) == 12  # a hash of the content, since the row has no id
    assert find_rows(path, ids(made)).numbers == {3}


@pytest.mark.parametrize(
    ("where", "numbers"),
    [("user=anna", {2}), ("meta.user=17", {1}), ("meta.tags=y", {1}), ("user=ann", set()), ("nobody=1", set())],
)
def test_rows_are_found_by_a_field(tmp_path: Path, where: str, numbers: set[int]) -> None:
    field, value = parse_where(where)
    assert find_rows(lines(tmp_path / "x.jsonl"), Wanted(field=field, value=value)).numbers == numbers


def test_what_is_no_field_and_value_is_refused() -> None:
    assert parse_where("url=a=b") == ("url", "a=b")
    for wrong in ("user", "=anna"):
        with pytest.raises(BadInput, match="wanted FIELD=VALUE"):
            parse_where(wrong)


def test_lines_that_stay_keep_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    text = b'\xef\xbb\xbf{"prompt":  "a", "response": "b", "id":"1"}\r\n\n{broken\n{"prompt": "c", "response": "d"}'
    path.write_bytes(text)
    found = find_rows(path, ids("1"))
    assert (found.numbers, found.unreadable) == ({1}, 1)
    write_without(path, tmp_path / "y", {4})
    assert (tmp_path / "y").read_bytes() == text[: text.rindex(b"{")]
    write_without(path, tmp_path / "y", found.numbers)
    assert (tmp_path / "y").read_bytes() == b'\n{broken\n{"prompt": "c", "response": "d"}'


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_stays_an_array_and_keeps_its_indent(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ROWS, indent=indent) + "\n")
    write_without(path, tmp_path / "y", {2})
    assert (tmp_path / "y").read_text() == json.dumps([ROWS[0], ROWS[2]], indent=indent) + "\n"


def test_a_compressed_file_stays_compressed_and_has_no_clock(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(lines(tmp_path / "x.jsonl").read_bytes()))
    numbers = find_rows(path, ids("a")).numbers
    for name in ("y", "z"):
        write_without(path, tmp_path / name, numbers)
    assert (tmp_path / "y").read_bytes() == (tmp_path / "z").read_bytes()
    left = gzip.decompress((tmp_path / "y").read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in left] == ROWS[1:]


def test_rows_of_an_unknown_format_are_found_by_their_own_id(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id": "1", "strange": true}\n{"id": "2", "strange": true}\n')
    found = find_rows(tmp_path / "x.jsonl", ids("2"))
    assert (found.numbers, found.contents) == ({2}, {})
    (tmp_path / "x.jsonl").write_bytes(b"\0\0")
    with pytest.raises(BadInput, match="binary file"):
        find_rows(tmp_path / "x.jsonl", ids("2"))
