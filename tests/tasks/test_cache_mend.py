from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.cache_mend import mend
from tasks.dvc_store import object_path
from tasks.graph import plan
from tasks.lock_file import read_lock
from tasks.stage import run_stage
from tests.tiny_project import count, dvc, spoil


def cached(root: Path, stage: str, path: str, *, name: str | None = None) -> Path:
    return object_path(root / ".dvc" / "cache", name or read_lock(root)[stage].outs[path])


def actions(root: Path) -> dict[str, str]:
    return {stage.name: stage.action for stage in plan(root)}


def quiet(_: str) -> None:
    return


def test_nothing_is_said_about_an_intact_cache(finished_project: Path) -> None:
    assert mend(finished_project, plan(finished_project), on_line=quiet) == []


@pytest.mark.parametrize("harm", [Path.unlink, spoil])
def test_what_the_work_tree_has_is_copied_and_no_stage_runs(
    finished_project: Path, harm: Callable[[Path], None]
) -> None:
    place = cached(finished_project, "last", "last.txt")
    before = place.read_bytes()
    harm(place)
    assert set(actions(finished_project).values()) == {"cached"}
    (said,) = mend(finished_project, plan(finished_project), on_line=quiet)
    assert said == (
        "last: last.txt was missing or damaged in DVC's cache (1 of 1 files); brought back from the work tree"
    )
    assert place.read_bytes() == before
    assert place.stat().st_mode & 0o777 == 0o444
    assert "up to date" in dvc(finished_project, "repro")
    assert [stage.damage for stage in plan(finished_project)] == [(), (), (), ()]


def test_without_another_copy_the_stage_runs_again_though_dvc_would_restore_the_wrong_bytes(
    finished_project: Path,
) -> None:
    good = (finished_project / "left" / "part.txt").read_bytes()
    name = next(
        file
        for file in (finished_project / ".dvc" / "cache" / "files").rglob("*")
        if file.is_file() and file.read_bytes() == good
    )
    spoil(name)
    (finished_project / "left" / "part.txt").unlink()
    dvc(finished_project, "checkout", "left")  # this is what DVC does with it
    assert (finished_project / "left" / "part.txt").read_bytes() != good
    assert "up to date" in dvc(finished_project, "status")
    assert actions(finished_project) == {"first": "cached", "left": "run", "right": "cached", "last": "maybe"}
    (said,) = mend(finished_project, plan(finished_project), on_line=quiet)
    assert said.endswith("there is no other copy, so the stage runs again")
    assert run_stage("left", root=finished_project, on_line=quiet).status == "run"
    assert (finished_project / "left" / "part.txt").read_bytes() == good
    assert set(actions(finished_project).values()) == {"cached"}
    assert count(finished_project, "left") == 2


def test_the_remote_brings_it_back_unless_its_copy_is_no_better(finished_project: Path, tmp_path: Path) -> None:
    dvc(finished_project, "remote", "add", "-d", "store", str(tmp_path / "remote"))
    dvc(finished_project, "push", "-q")
    place = cached(finished_project, "last", "last.txt")
    text = (finished_project / "last.txt").read_bytes()
    spoil(place)
    (finished_project / "last.txt").unlink()
    assert actions(finished_project)["last"] == "restore"
    (said,) = mend(finished_project, plan(finished_project), on_line=quiet)
    assert said.endswith("brought back from the remote")
    assert actions(finished_project)["last"] == "restore"
    run_stage("last", root=finished_project, on_line=quiet)
    assert (finished_project / "last.txt").read_bytes() == text
    assert count(finished_project, "last") == 1

    spoil(object_path(tmp_path / "remote", place.parent.name + place.name))
    spoil(place)
    (finished_project / "last.txt").unlink()
    (said,) = mend(finished_project, plan(finished_project), on_line=quiet)
    assert said.endswith("the remote's copy is no better, so the stage runs again")
    assert run_stage("last", root=finished_project, on_line=quiet).status == "run"
    assert (finished_project / "last.txt").read_bytes() == text
