import errno
import json

import pytest

from rlhf.errors import BadInput, StageFailed
from rlhf.rank_notes import read_notes
from rlhf.stage_failure import FAILURES, explain, report


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "RATCHET_RANKS"):
        monkeypatch.delenv(name, raising=False)


def note():
    return json.loads((FAILURES / "sft.json").read_text())


@pytest.mark.parametrize(
    ("error", "code", "kind", "sentence"),
    [
        (BadInput("rows.jsonl: empty"), 2, "bad_input", "rows.jsonl: empty"),
        (StageFailed("diverged"), 1, "failed", "diverged"),
        (OSError(errno.ENOSPC, "No space left", "out.csv"), 1, "failed", "cannot write out.csv: No space left; free"),
        (MemoryError(), 1, "failed", "this computer ran out of memory"),
        (ValueError("x"), 1, "failed", "ValueError: x"),
        (OSError(errno.ENOENT, "No such file", "in.csv"), 1, "failed", "FileNotFoundError: [Errno 2] No such file"),
    ],
)
def test_every_error_becomes_one_sentence(error, code, kind, sentence, capsys):
    assert explain("sft", error, {}) == code
    assert (note()["exit_code"], note()["kind"]) == (code, kind)
    assert note()["sentence"].startswith(sentence)
    assert f"sft: {sentence}" in capsys.readouterr().err


def test_a_rank_tells_its_supervisor_and_nobody_else(tmp_path, monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "RATCHET_RANKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    assert report("sft", 2, "bad_input", "rows.jsonl: empty") == 2
    assert capsys.readouterr().err == ""
    assert not FAILURES.exists()
    (one,) = read_notes(tmp_path)
    assert (one.rank, one.world, one.state, one.exit_code) == (1, 2, "failed", 2)
    assert (one.kind, one.sentence) == ("bad_input", "rows.jsonl: empty")


def test_a_folder_that_cannot_be_written_hides_no_reason(tmp_path, capsys):
    (tmp_path / ".ratchet").write_text("a file where a folder should be")
    assert report("sft", 1, "failed", "diverged") == 1
    said = capsys.readouterr().err
    assert "sft: diverged" in said
    assert "the reason could not be kept" in said
