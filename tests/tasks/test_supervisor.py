import os
import signal
import subprocess
import sys
from pathlib import Path

from tasks import supervisor
from tests.tiny_project import alive, wait_for

# A stage at its worst: a grandchild in a session of its own that ignores SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"],
    start_new_session=True,
)
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""


def start(*command: str, grace: str = "0.3") -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), grace, *command])


def pids_in(path: Path) -> list[int]:
    wait_for(lambda: path.is_file() and len(path.read_text().split()) == 2)
    return [int(word) for word in path.read_text().split()]


def test_exit_codes_pass_through() -> None:
    assert start(sys.executable, "-c", "raise SystemExit(7)").wait() == 7
    assert start(sys.executable, "-c", "import os; os.kill(os.getpid(), 9)").wait() == 128 + 9
    assert start("/no/such/program").wait() == 127


def test_sigterm_ends_even_what_ignores_it(tmp_path: Path) -> None:
    process = start(sys.executable, "-c", STUBBORN, str(tmp_path / "pids"))
    pids = pids_in(tmp_path / "pids")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert not any(map(alive, pids))


def test_what_a_finished_command_left_behind_is_ended(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True); open(sys.argv[1], 'w').write(f'{child.pid} 0')"
    )
    assert start(sys.executable, "-c", code, str(tmp_path / "pids")).wait(timeout=20) == 0
    assert not alive(pids_in(tmp_path / "pids")[0])


def test_a_killed_runner_takes_everything_with_it(tmp_path: Path) -> None:
    runner_code = (
        "import os, subprocess, sys; from tasks import supervisor\n"
        "subprocess.run([sys.executable, '-I', '-S', supervisor.__file__, str(os.getpid()), '0.3',"
        " sys.executable, '-c', sys.argv[1], sys.argv[2]])"
    )
    command = [sys.executable, "-c", runner_code, STUBBORN, str(tmp_path / "pids")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as runner:
        pids = pids_in(tmp_path / "pids")
        assert all(map(alive, pids))
        runner.kill()
    wait_for(lambda: not any(map(alive, pids)))


def test_a_runner_that_is_dead_already_starts_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", supervisor.__file__, "1", "0.3", sys.executable, "-c", "open('ran', 'w')"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 128 + signal.SIGTERM
    assert not (tmp_path / "ran").exists()
