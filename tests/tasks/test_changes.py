"""A plan is judged by what DVC then does: every test runs the stages and compares."""

import shutil
from pathlib import Path

import pytest

from tasks.cache_mend import mend
from tasks.changes import differences
from tasks.graph import plan
from tasks.stage import Status, run_stage
from tests.tiny_project import dvc, edit

POSSIBLE: dict[str, set[Status]] = {
    "run": {"run"},
    "restore": {"restored"},
    "cached": {"cached"},
    "maybe": {"run", "restored", "cached"},
}


def actions(root: Path) -> dict[str, str]:
    return {stage.name: stage.action for stage in plan(root)}


def reasons(root: Path, stage: str) -> list[str]:
    return [str(reason) for planned in plan(root) if planned.name == stage for reason in planned.reasons]


def run_all(root: Path) -> dict[str, Status]:
    """Have DVC run every stage, check that each did what was planned, and that nothing is left to do."""
    planned = actions(root)
    said = dvc(root, "repro")
    done: dict[str, Status] = {}
    for name in planned:
        skipped = f"Stage '{name}' didn't change" in said or f"frozen stage: '{name}'" in said
        restored = f"Stage '{name}' is cached - skipping run" in said
        done[name] = "cached" if skipped else "restored" if restored else "run"
        assert (done[name] == "run") == (f"Running stage '{name}':" in said)
    for name, status in done.items():
        assert status in POSSIBLE[planned[name]], (name, planned, done)
    assert set(actions(root).values()) == {"cached"}
    return done


def test_a_new_project_runs_everything(new_project: Path) -> None:
    assert reasons(new_project, "first") == ["has never run"]
    assert set(actions(new_project).values()) == {"run"}
    assert set(run_all(new_project).values()) == {"run"}


def test_a_parameter_and_what_may_follow_and_the_way_back(finished_project: Path) -> None:
    edit(finished_project, "word: two", "word: TWO")
    assert actions(finished_project) == {"first": "cached", "left": "run", "right": "cached", "last": "maybe"}
    assert reasons(finished_project, "left") == ["parameter left.word changed ('two' -> 'TWO')"]
    assert reasons(finished_project, "last") == ["runs if left of left changes"]
    assert run_all(finished_project) == {"first": "cached", "left": "run", "right": "cached", "last": "run"}
    # Back again: DVC knows the results of both, and so, all the way down, does the plan.
    edit(finished_project, "word: TWO", "word: two")
    assert actions(finished_project) == {"first": "cached", "left": "restore", "right": "cached", "last": "restore"}
    assert run_all(finished_project) == {"first": "cached", "left": "restored", "right": "cached", "last": "restored"}


def test_a_changed_file_is_named_with_both_hashes(finished_project: Path) -> None:
    (finished_project / "raw.txt").write_text("other\n")
    # md5sum of "raw\n" and of "other\n"
    assert reasons(finished_project, "first") == ["raw.txt changed (2306b43 -> ba7790b)"]
    assert actions(finished_project)["right"] == "maybe"
    assert set(run_all(finished_project).values()) == {"run"}


def test_a_run_that_changes_no_output_stops_the_chain(finished_project: Path) -> None:
    edit(finished_project, "right: {word: three, fail: no", "right: {word: three, fail: null")
    assert actions(finished_project)["last"] == "maybe"
    assert run_all(finished_project) == {"first": "cached", "left": "cached", "right": "run", "last": "cached"}


def test_a_missing_output_is_put_back(finished_project: Path) -> None:
    shutil.rmtree(finished_project / "left")
    assert reasons(finished_project, "left") == ["output left is missing"]
    assert actions(finished_project) == {"first": "cached", "left": "restore", "right": "cached", "last": "cached"}
    run_all(finished_project)


def test_an_output_changed_by_hand_is_put_back(finished_project: Path) -> None:
    path = finished_project / "right.txt"
    path.unlink()  # it may be a link into the cache
    path.write_text("by hand")
    assert reasons(finished_project, "right") == ["output right.txt is not what the stage wrote"]
    assert actions(finished_project)["right"] == "restore"
    run_all(finished_project)


def test_an_output_lost_from_the_cache_is_no_reason_to_run_while_the_work_tree_has_it(finished_project: Path) -> None:
    for path in (finished_project / ".dvc" / "cache" / "files").rglob("*"):
        if path.is_file() and path.read_bytes() == (finished_project / "last.txt").read_bytes():
            path.unlink()
    (said,) = reasons(finished_project, "last")
    assert said.startswith("output last.txt is missing or damaged in DVC's cache (its file), `ratchet run` copies")
    assert actions(finished_project)["last"] == "cached"
    mend(finished_project, plan(finished_project), on_line=lambda line: None)
    assert run_all(finished_project)["last"] == "cached"


def test_an_output_that_is_nowhere_runs_again(finished_project: Path) -> None:
    for path in (finished_project / ".dvc" / "cache" / "files").rglob("*"):
        if path.is_file() and path.read_bytes() == (finished_project / "last.txt").read_bytes():
            path.unlink()
    (finished_project / "last.txt").unlink()
    assert reasons(finished_project, "last") == ["output last.txt is missing"]
    assert run_all(finished_project)["last"] == "run"


def test_a_changed_command(finished_project: Path) -> None:
    edit(finished_project, "step.py last", "step.py  last", file="dvc.yaml")
    assert reasons(finished_project, "last") == ["its command in dvc.yaml changed"]
    assert run_all(finished_project)["last"] == "run"


def test_an_absent_input_is_told(finished_project: Path) -> None:
    (finished_project / "raw.txt").unlink()
    assert reasons(finished_project, "first") == ["raw.txt changed (2306b43 -> absent)"]
    assert actions(finished_project)["first"] == "run"


def test_a_frozen_stage_is_left_alone(finished_project: Path) -> None:
    edit(finished_project, "  left:\n", "  left:\n    frozen: true\n", file="dvc.yaml")
    edit(finished_project, "word: two", "word: TWO")
    assert reasons(finished_project, "left") == ["is frozen in dvc.yaml, so its dependencies are not looked at"]
    assert run_all(finished_project) == {"first": "cached", "left": "cached", "right": "cached", "last": "cached"}


def test_a_stage_that_always_runs(finished_project: Path) -> None:
    edit(finished_project, "  right:\n", "  right:\n    always_changed: true\n", file="dvc.yaml")
    assert reasons(finished_project, "right") == ["runs every time (always_changed in dvc.yaml)"]
    assert actions(finished_project)["last"] == "maybe"
    assert run_stage("right", root=finished_project, on_line=lambda line: None).status == "run"


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, [("s.b.c", 2, 3)]),
        (1e-3, 0.001, []),
        ((1, 2), [1, 2], []),
        ([1], [1, 2], [("s", [1], [1, 2])]),
        ("3e-6", 3e-6, [("s", "3e-6", 3e-6)]),
    ],
)
def test_parameters_are_compared_leaf_by_leaf(old: object, new: object, found: list[object]) -> None:
    assert list(differences("s", old, new)) == found


def test_new_and_dropped_parameters(finished_project: Path) -> None:
    edit(finished_project, ", rate: 1e-3", ", pace: 7")
    assert reasons(finished_project, "last") == [
        "parameter last.pace changed (absent -> 7)",
        "parameter last.rate changed (0.001 -> absent)",
    ]
