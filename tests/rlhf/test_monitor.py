import json
from pathlib import Path

import pytest

from rlhf.monitor import Monitor


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_KEY", "k1")
    return tmp_path / ".ratchet/tmp/live/sft/k1.jsonl"


def read(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_live_rows_have_a_clock_and_the_curve_has_none(live: Path, tmp_path: Path) -> None:
    monitor = Monitor("sft", 2)
    monitor.log(1, loss=0.5)
    monitor.log(2, loss=0.25, lr=1e-3)
    assert [row["total"] for row in read(live)] == [2, 2]
    assert all(row["time"] > 0 for row in read(live))
    monitor.write_curve(tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text() == "step,loss,lr\n1,0.5,\n2,0.25,0.001\n"


def test_a_resumed_run_cuts_live_rows_beyond_its_checkpoint(live: Path) -> None:
    first = Monitor("sft", 5)
    for step in (1, 2, 3):
        first.log(step, loss=float(step))
    second = Monitor("sft", 5)
    second.restore(first.rows[:2])
    assert [row["step"] for row in read(live)] == [1, 2]
    second.log(3, loss=9.0)
    assert [(row["step"], row["loss"]) for row in read(live)] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert second.rows == [*first.rows[:2], {"step": 3, "loss": 9.0}]


def test_rows_of_an_attempt_without_checkpoint_are_dropped(live: Path) -> None:
    Monitor("sft", 5).log(1, loss=1.0)
    Monitor("sft", 5).log(1, loss=2.0)
    assert [row["loss"] for row in read(live)] == [2.0]


def test_without_a_key_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RATCHET_KEY", raising=False)
    monitor = Monitor("sft", 1)
    monitor.log(1, loss=1.0)
    assert monitor.rows == [{"step": 1, "loss": 1.0}]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_live_row_that_cannot_be_written_names_its_file(live: Path) -> None:
    monitor = Monitor("sft", 2)
    live.unlink()
    live.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '\.ratchet/tmp/live/sft/k1\.jsonl'"):
        monitor.log(1, loss=0.5)


def test_half_a_row_of_a_killed_process_is_cut_off(live: Path) -> None:
    first = Monitor("sft", 5)
    first.log(1, loss=1.0)
    with live.open("a") as stream:
        stream.write('{"step": 2, "lo')
    second = Monitor("sft", 5)
    second.restore(first.rows)
    second.log(2, loss=2.0)
    assert [row["step"] for row in read(live)] == [1, 2]


def test_live_rows_that_were_lost_with_the_power_are_written_again(live: Path) -> None:
    first = Monitor("sft", 5)
    for step in (1, 2, 3):
        first.log(step, loss=float(step))
    lines = live.read_text().splitlines(keepends=True)
    live.write_text(lines[0] + lines[1][:9])
    second = Monitor("sft", 5)
    second.restore(first.rows)
    assert [(row["step"], row["loss"], row["total"]) for row in read(live)] == [(1, 1, 5), (2, 2, 5), (3, 3, 5)]
