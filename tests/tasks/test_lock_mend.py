"""A dvc.lock that is cut off at any byte costs nothing."""

import random
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.graph import plan
from tasks.lock_mend import keep_copy, mend_torn_lock, plan_mended
from tests.tiny_project import command, count, dvc

STAGES = ("first", "left", "right", "last")


def test_wherever_it_is_cut_every_stage_comes_back_and_none_runs_again(finished_project: Path) -> None:
    path = finished_project / "dvc.lock"
    whole = path.read_bytes()
    rng = random.Random(3)
    for place in [0, len(whole) - 1, *rng.sample(range(len(whole)), 25)]:  # none of them stops a run
        path.write_bytes(whole[:place])
        plan_mended(finished_project, until=None, force=(), say=lambda _: None)
    for place in (974, rng.randrange(len(whole))):
        path.write_bytes(whole[:place])
        mend_torn_lock(finished_project)
        dvc(finished_project, "repro", "-q")
    assert [count(finished_project, name) for name in STAGES] == [1, 1, 1, 1]
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_the_copy_comes_before_the_committed_one_and_both_before_none(finished_project: Path) -> None:
    path = finished_project / "dvc.lock"
    whole = path.read_bytes()
    torn = whole[:-30] + b"  : ["
    path.write_bytes(torn)
    assert "removed" in str(mend_torn_lock(finished_project))
    assert not path.exists()
    assert (finished_project / ".ratchet/tmp/dvc.lock.torn").read_bytes() == torn

    path.write_bytes(whole)
    command(finished_project, "git", "add", "dvc.lock")
    command(finished_project, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "lock")
    path.write_bytes(torn)
    assert "the committed one" in str(mend_torn_lock(finished_project))
    assert path.read_bytes() == whole
    keep_copy(finished_project)
    path.write_bytes(torn)
    assert "the copy" in str(mend_torn_lock(finished_project))
    assert {stage.action for stage in plan(finished_project)} == {"cached"}


def test_a_whole_file_an_absent_one_and_one_being_merged_are_left_alone(finished_project: Path) -> None:
    path = finished_project / "dvc.lock"
    assert mend_torn_lock(finished_project) is None
    merged = b"<<<<<<< HEAD\n" + path.read_bytes() + b"=======\n>>>>>>> theirs\n"
    path.write_bytes(merged)
    with pytest.raises(BadInput):
        plan_mended(finished_project, until=None, force=(), say=lambda _: None)
    assert path.read_bytes() == merged
    path.unlink()
    assert mend_torn_lock(finished_project) is None
