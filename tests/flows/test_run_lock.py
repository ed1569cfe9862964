import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.errors import CommandError
from flows.run_lock import holder, run_lock

REPOSITORY = Path(__file__).parents[2]
HOLD = (
    "import sys, time; from pathlib import Path; from flows.run_lock import run_lock\n"
    "with run_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
)


def test_a_second_run_is_told_who_holds_it(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    command = [sys.executable, "-c", HOLD, tmp_path]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        found = holder(tmp_path)
        assert found is not None
        assert found.pid == other.pid
        with pytest.raises(CommandError, match=f"process {other.pid}, since ") as caught, run_lock(tmp_path):
            pass
        assert caught.value.exit_code == 1
        other.kill()
    with run_lock(tmp_path):  # the kernel has freed it
        mine = holder(tmp_path)
    assert mine is not None
    assert mine.pid == os.getpid()
    assert holder(tmp_path) is None
