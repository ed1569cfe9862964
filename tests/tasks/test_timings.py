from pathlib import Path

from tasks.timings import read_timing, write_timing


def test_the_last_execution_is_kept(tmp_path: Path) -> None:
    assert read_timing(tmp_path, "sft") is None
    write_timing(tmp_path, "sft", seconds=3.0, peak_mb=10.0)
    written = write_timing(tmp_path, "sft", seconds=1.23456, peak_mb=200.04)
    assert (written.seconds, written.peak_mb) == (1.235, 200.0)
    assert read_timing(tmp_path, "sft") == written


def test_a_torn_file_is_no_record(tmp_path: Path) -> None:
    write_timing(tmp_path, "sft", seconds=3.0, peak_mb=10.0)
    (tmp_path / ".ratchet" / "tmp" / "timings" / "sft.json").write_text('{"stage": "sft"')
    assert read_timing(tmp_path, "sft") is None
