import json

import pytest

from rlhf.errors import BadInput
from rlhf.record_file import RecordFile, digest_of
from rlhf.row_views import View

ROWS = [{"n": number, "text": "é" * number} for number in range(5)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    return file


def test_a_file_is_the_sequence_of_its_records(path):
    found = RecordFile(path)
    assert list(found) == ROWS
    assert (found[2], found[-1], len(found), list(found[1:3])) == (ROWS[2], ROWS[-1], 5, ROWS[1:3])
    with pytest.raises(IndexError):
        found[5]


def test_blank_lines_and_a_missing_last_line_feed_do_no_harm(path):
    path.write_text('{"n": 0}\n\n{"n": 1}', encoding="utf-8")
    found = RecordFile(path)
    assert (len(found), found[1], list(found)) == (2, {"n": 1}, [{"n": 0}, {"n": 1}])


def test_an_empty_file_has_no_records(path):
    path.write_text("")
    assert not RecordFile(path)
    assert list(RecordFile(path)) == []


def test_what_is_wrong_is_said_with_its_line(path):
    with pytest.raises(BadInput, match=r"nowhere\.jsonl: no such file"):
        RecordFile(path.with_name("nowhere.jsonl"))
    path.write_text('\n{"n": 0}\n[1]\n{', encoding="utf-8")
    found = RecordFile(path)
    assert found[0] == {"n": 0}
    with pytest.raises(BadInput, match=r"rows\.jsonl:3: got a list"):
        found[1]
    with pytest.raises(BadInput, match=r"rows\.jsonl:4: not JSON"):
        found[2]


def test_the_digest_changes_with_the_bytes_and_with_the_choice(path):
    found = RecordFile(path)
    digests = {digest_of(found), digest_of(found[:2]), digest_of(View(found, [1, 0]))}
    assert len(digests) == 3
    assert digest_of(found[:2]) == digest_of(View(RecordFile(path), [0, 1]))
    assert digest_of(ROWS) is None
    path.write_text('{"n": 9}\n')
    assert digest_of(RecordFile(path)) not in digests
