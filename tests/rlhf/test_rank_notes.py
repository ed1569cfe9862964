import os

import pytest

from rlhf.rank_notes import is_rank, leave_note, name_ranks, read_notes


def test_a_process_is_a_rank_when_there_are_several(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_rank()
    monkeypatch.setenv("RANK", "0")
    assert is_rank()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_rank()


def test_the_last_word_of_each_rank_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("RATCHET_RANKS", str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "12")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for rank in (10, 2):
        monkeypatch.setenv("RANK", str(rank))
        leave_note("started")
    leave_note("failed", exit_code=2, kind="bad_input", sentence="empty")
    notes = read_notes(tmp_path)
    assert [(note.rank, note.world, note.here, note.state) for note in notes] == [
        (2, 12, 4, "failed"), (10, 12, 4, "started"),
    ]  # fmt: skip
    assert notes[1].pid == os.getpid()
    assert (notes[0].exit_code, notes[0].kind, notes[0].sentence) == (2, "bad_input", "empty")


def test_without_a_supervisor_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RATCHET_RANKS", raising=False)
    leave_note("started")
    monkeypatch.setenv("RATCHET_RANKS", str(tmp_path / "gone"))
    leave_note("started")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ranks", "words"), [([1], "rank 1 of 4"), ([1, 3], "ranks 1 and 3 of 4"), ([0, 1, 3], "ranks 0, 1 and 3 of 4")]
)
def test_ranks_are_named(ranks, words):
    assert name_ranks(ranks, 4) == words
