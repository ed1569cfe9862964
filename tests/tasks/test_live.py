import json
import os
import threading
import time
from pathlib import Path

from tasks.live import follow, latest, live_file, read_rows


def write(root: Path, key: str, steps: range, *, tail: str = "") -> Path:
    path = root / ".ratchet" / "tmp" / "live" / "sft" / f"{key}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "total": 9, "time": 1.0}) + "\n" for step in steps) + tail)
    return path


def test_the_newest_key_counts(tmp_path: Path) -> None:
    assert live_file(tmp_path, "sft") is None
    old, new = write(tmp_path, "old", range(3)), write(tmp_path, "new", range(5))
    os.utime(old, (100, 100))
    assert live_file(tmp_path, "sft") == new
    assert live_file(tmp_path, "sft", since=time.time() + 60) is None


def test_a_line_still_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = write(tmp_path, "key", range(2), tail='{"step": 2, "tot')
    assert [row["step"] for row in read_rows(path)] == [0, 1]
    found = latest(tmp_path, "sft")
    assert found is not None
    assert found["step"] == 1


def test_rows_are_followed_to_the_end_and_over_a_cut(tmp_path: Path) -> None:
    path = write(tmp_path, "key", range(1, 4))
    over = threading.Event()
    seen: list[int] = []
    reader = threading.Thread(
        target=lambda: seen.extend(row["step"] for row in follow(tmp_path, "sft", stop=over.is_set, every=0.02))
    )
    reader.start()
    time.sleep(0.2)
    write(tmp_path, "key", range(1, 3))  # resumed from step 2
    time.sleep(0.2)
    with path.open("a") as stream:
        stream.write('{"step": 3}\n{"step": 4}\n')
    over.set()
    reader.join(timeout=5)
    assert seen == [1, 2, 3, 3, 4]
