import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.slots import Need, Slots, SlotsCancelled, gpu_count
from tests.tiny_project import wait_for


def test_two_halves_fit_side_by_side_and_a_third_waits(tmp_path: Path) -> None:
    slots = Slots(tmp_path, cpu=2, gpu=0)
    entered = threading.Event()

    def third() -> None:
        with slots.lease("c", Need()):
            entered.set()

    with slots.lease("a", Need()):
        with slots.lease("b", Need()):
            waiter = threading.Thread(target=third)
            waiter.start()
            assert not entered.wait(0.3)
        assert entered.wait(5)
    waiter.join()


def test_more_than_there_is_means_all_of_it(tmp_path: Path) -> None:
    with Slots(tmp_path, cpu=2, gpu=0).lease("a", Need(cpu=8, gpu=4)) as lease:
        assert len(lease.files) == 2
        assert lease.gpus == ()


def test_who_wants_two_holds_nothing_while_one_is_taken(tmp_path: Path) -> None:
    slots, other = Slots(tmp_path, cpu=2, gpu=0), Slots(tmp_path, cpu=2, gpu=0)  # as two processes would have
    with slots.lease("a", Need()):
        other.request({"big": Need(cpu=2)})
        with slots.lease("b", Need()):
            pass
    with other.lease("big", Need(cpu=2)) as lease:
        assert len(lease.files) == 2


def test_the_longest_path_goes_first_whoever_asks_first(tmp_path: Path) -> None:
    slots = Slots(tmp_path, cpu=1, gpu=0)
    with slots.lease("before", Need()):
        slots.request({"short": Need(priority=1), "long": Need(priority=5)})
    with pytest.raises(SlotsCancelled), slots.lease("short", Need(), cancelled=lambda: True):
        pass
    with slots.lease("long", Need(priority=5)) as lease:
        assert len(lease.files) == 1


def test_what_was_requested_and_never_used_is_given_back(tmp_path: Path) -> None:
    slots = Slots(tmp_path, cpu=1, gpu=0)
    slots.request({"a": Need()})
    slots.close()
    with Slots(tmp_path, cpu=1, gpu=0).lease("b", Need(), cancelled=lambda: True) as lease:
        assert len(lease.files) == 1


def test_the_kernel_frees_the_slot_of_a_killed_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tasks.slots import Need, Slots\n"
        "with Slots(Path(sys.argv[1]), cpu=1, gpu=0).lease('a', Need()): print('held', flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path], cwd=root, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder, holder.stdout:
        holder.stdout.readline()
        slots = Slots(tmp_path, cpu=1, gpu=0)
        with pytest.raises(SlotsCancelled), slots.lease("b", Need(), cancelled=lambda: True):
            pass
        holder.kill()
        holder.wait()
    with slots.lease("b", Need()) as lease:
        assert len(lease.files) == 1


def test_a_child_that_inherits_the_files_keeps_the_slot(tmp_path: Path) -> None:
    slots = Slots(tmp_path, cpu=1, gpu=0)
    with slots.lease("a", Need()) as lease:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=lease.files)
    taken = Slots(tmp_path, cpu=1, gpu=0)
    with pytest.raises(SlotsCancelled), taken.lease("b", Need(), cancelled=lambda: True):
        pass
    child.kill()
    child.wait()
    with taken.lease("b", Need()):
        pass


def test_devices_are_named_to_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert gpu_count() == 2
    slots = Slots(tmp_path, cpu=4)
    with slots.lease("a", Need(gpu=1)) as first, slots.lease("b", Need(gpu=1)) as second:
        assert first.environment() == {"CUDA_VISIBLE_DEVICES": "4"}
        assert second.environment() == {"CUDA_VISIBLE_DEVICES": "6"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_count() == 0


def test_many_threads_do_not_block_each_other(tmp_path: Path) -> None:
    slots = Slots(tmp_path, cpu=3, gpu=0)
    done: list[str] = []

    def work(name: str, cpu: int) -> None:
        with slots.lease(name, Need(cpu=cpu)):
            time.sleep(0.01)
            done.append(name)

    threads = [threading.Thread(target=work, args=(str(i), 1 + i % 3)) for i in range(9)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(done) == 9, seconds=20)
    for thread in threads:
        thread.join()
    assert len(os.listdir(tmp_path / ".ratchet" / "tmp" / "slots")) == 3
