import json
import os
import socket
import subprocess
import sys

import psutil

from tasks.owner import is_dead, owner
from tests.tiny_project import wait_for


def test_this_process_lives() -> None:
    assert not is_dead(owner())


def test_nobody_and_another_machine_are_not_known_to_be_dead() -> None:
    assert not is_dead(None)
    assert not is_dead("not json")
    assert not is_dead(json.dumps(["another-machine", 1, 1.0]))


def test_a_pid_that_is_used_again_is_another_process() -> None:
    assert is_dead(json.dumps([socket.gethostname(), os.getpid(), 12345.0]))


def test_a_process_that_was_killed_is_dead_before_and_after_it_is_collected() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        name = json.dumps([socket.gethostname(), process.pid, psutil.Process(process.pid).create_time()])
        assert not is_dead(name)
        process.kill()
        wait_for(lambda: is_dead(name))
    assert is_dead(name)
