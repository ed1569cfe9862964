import os
import sys
import threading
from pathlib import Path

from tasks.process import run_supervised
from tests.tiny_project import alive, wait_for


def test_lines_arrive_and_memory_is_measured(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import time; block = bytearray(80_000_000); print('one\\r\\ntwo', flush=True); time.sleep(0.8)"
    ended = run_supervised([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, on_line=lines.append)
    assert (ended.exit_code, ended.cancelled) == (0, False)
    assert [line for line in lines if line] == ["one", "two"]
    assert tuple(lines) == ended.lines
    assert 80 < ended.peak_mb < 200  # the block and an interpreter
    assert ended.seconds >= 0.8


def test_cancelling_ends_it(tmp_path: Path) -> None:
    stop = threading.Event()

    def on_line(_: str) -> None:
        stop.set()

    code = "import os, time; open('pid', 'w').write(str(os.getpid())); print('up', flush=True); time.sleep(60)"
    ended = run_supervised(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, on_line=on_line, cancelled=stop.is_set
    )
    assert ended.cancelled
    assert ended.seconds < 20
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not alive(pid))
