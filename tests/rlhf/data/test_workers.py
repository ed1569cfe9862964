import os
import signal

import pytest

from rlhf.data.workers import FEW, Workers
from rlhf.errors import StageFailed


def square(number: int) -> int:
    return number * number


def own_process(_: int) -> int:
    return os.getpid()


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_in_order_from_any_number_of_processes() -> None:
    numbers = range(3 * FEW)
    expected = [number * number for number in numbers]
    assert list(Workers(1).map(square, numbers)) == expected
    with Workers(2) as workers:
        assert list(workers.map(square, numbers)) == expected
        assert os.getpid() not in workers.map(own_process, numbers)
        assert list(workers.map(square, [])) == []


def test_a_little_work_starts_no_process() -> None:
    with Workers(2) as workers:
        assert set(workers.map(own_process, range(FEW))) == {os.getpid()}


def test_a_killed_process_is_no_hang() -> None:
    with Workers(2) as workers, pytest.raises(StageFailed, match="was killed"):
        list(workers.map(die, range(3 * FEW)))
