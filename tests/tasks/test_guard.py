import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.guard import Guard
from tests.tiny_project import alive, wait_for

REPOSITORY = Path(__file__).parents[2]
RUN = (
    "import os, sys, time; from pathlib import Path; from tasks.guard import Guard\n"
    "folder = Path(sys.argv[1])\n"
    "with Guard(['touch', 'worked'], cwd=folder, env=os.environ, log=folder / 'log') as guard:\n"
    "    print(guard._process.pid, flush=True); time.sleep(60)"
)


def guard(folder: Path) -> Guard:
    return Guard(["touch", "worked"], cwd=folder, env=os.environ, log=folder / "log")


def ignores(pid: int, number: int) -> bool:
    (line,) = [row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("SigIgn")]
    return bool(int(line.split()[1], 16) & 1 << (number - 1))


def test_after_an_orderly_end_it_goes_without_a_word(tmp_path: Path) -> None:
    with guard(tmp_path) as watching:
        process = watching._process
        assert process is not None
        assert process.poll() is None
    assert process.returncode == 0
    assert not (tmp_path / "worked").exists()
    assert (tmp_path / "log").read_bytes() == b""


def test_it_takes_a_few_megabytes(tmp_path: Path) -> None:
    with guard(tmp_path) as watching:
        assert watching._process is not None
        pages = int(Path(f"/proc/{watching._process.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 20e6


def test_a_failed_run_has_ended_in_order_and_an_interrupted_one_has_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="failed"), guard(tmp_path):
        raise ValueError("failed")
    assert not (tmp_path / "worked").exists()
    with pytest.raises(KeyboardInterrupt), guard(tmp_path):
        raise KeyboardInterrupt
    wait_for((tmp_path / "worked").exists)


def test_a_run_may_ask_for_it(tmp_path: Path) -> None:
    with guard(tmp_path) as watching:
        watching.needed = True
    wait_for((tmp_path / "worked").exists)


def test_it_works_when_the_run_is_killed_and_no_signal_to_its_group_reaches_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        pid = int(run.stdout.readline())
        wait_for(lambda: ignores(pid, signal.SIGTERM))
        os.kill(pid, signal.SIGTERM)  # not even this
        os.killpg(run.pid, signal.SIGKILL)
    wait_for((tmp_path / "worked").exists)
    wait_for(lambda: not alive(pid))


def test_a_guard_that_was_killed_harms_nobody(tmp_path: Path) -> None:
    with guard(tmp_path) as watching:
        assert watching._process is not None
        watching._process.kill()
        watching._process.wait()
