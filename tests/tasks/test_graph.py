import io
import logging
import subprocess
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.graph import Graph, Stage, load_graph, plan, stale
from tests.tiny_project import dvc, edit


def test_the_graph_is_dvcs(finished_project: Path) -> None:
    graph = load_graph(finished_project)
    assert graph.order == ("first", "left", "right", "last")
    assert graph.stages["last"].upstream == {"left", "right"}
    assert graph.stages["last"].outs == ("last.txt", "data/metrics/last.json")
    assert graph.stages["left"].deps == ("first.txt", "step.py")
    assert graph.stages["left"].params == ("left",)
    assert graph.sources == ()


def test_dvc_draws_no_bars_into_our_display(finished_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.progress import Tqdm

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(logging.getLogger("dvc.progress"), "level", logging.WARNING)
    assert not Tqdm(file=terminal).disable
    load_graph(finished_project)
    assert Tqdm(file=terminal).disable


def test_parts_of_the_graph(finished_project: Path) -> None:
    graph = load_graph(finished_project)
    assert graph.ancestors("last") == {"first", "left", "right"}
    assert graph.descendants("first") == {"left", "right", "last"}
    assert graph.until("left") == ("first", "left")
    assert graph.until(None) == graph.order
    with pytest.raises(BadInput, match="no stage 'lest'; it has first, left, right, last"):
        graph.until("lest")


def test_order_puts_upstream_first_whatever_dvc_yaml_says() -> None:
    def stage(name: str, *upstream: str) -> Stage:
        return Stage(name=name, deps=(), outs=(), params=(), upstream=frozenset(upstream))

    from tasks.graph import _ordered

    assert _ordered({"c": stage("c", "b"), "b": stage("b", "a"), "a": stage("a"), "d": stage("d")}) == (
        "a", "b", "c", "d",
    )  # fmt: skip


def test_added_data_is_listed(new_project: Path) -> None:
    (new_project / "more.txt").write_text("more\n")
    dvc(new_project, "add", "-q", "more.txt")
    graph = load_graph(new_project)
    assert graph.sources == ("more.txt",)
    assert graph.order == ("first", "left", "right", "last")


def test_everything_up_to_date_means_nothing_is_stale(finished_project: Path) -> None:
    assert stale(finished_project) == {}
    assert [stage.action for stage in plan(finished_project)] == ["cached"] * 4


def test_stale_names_stages_with_reasons(finished_project: Path) -> None:
    edit(finished_project, "four", "FOUR")
    assert {name: [str(reason) for reason in reasons] for name, reasons in stale(finished_project).items()} == {
        "last": ["parameter last.word changed ('four' -> 'FOUR')"]
    }


def test_until_and_force(finished_project: Path) -> None:
    assert [stage.name for stage in plan(finished_project, until="right")] == ["first", "right"]
    forced = {stage.name: stage.action for stage in plan(finished_project, force=["right"])}
    assert forced == {"first": "cached", "left": "cached", "right": "run", "last": "maybe"}
    with pytest.raises(BadInput, match="no stage 'wrong'"):
        plan(finished_project, force=["wrong"])


def test_planning_needs_no_lock_and_changes_nothing(finished_project: Path) -> None:
    edit(finished_project, "two", "TWO")
    lock = finished_project / ".dvc" / "tmp" / "lock"
    lock.write_text("1")
    before = {path: path.read_bytes() for path in finished_project.glob("*.*") if path.is_file()}
    plan(finished_project)
    assert {path: path.read_bytes() for path in finished_project.glob("*.*") if path.is_file()} == before
    assert lock.read_text() == "1"


def test_it_works_from_another_folder(finished_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert load_graph(finished_project).order == ("first", "left", "right", "last")
    assert stale(finished_project) == {}


def test_a_torn_lock_file_is_named_with_the_cure(new_project: Path) -> None:
    (new_project / "dvc.lock").write_text("schema: [")
    with pytest.raises(BadInput, match=r"dvc\.lock', .*; mend that file, or `git checkout` the committed one"):
        load_graph(new_project)


def test_what_dvc_refuses_is_one_sentence(new_project: Path, tmp_path: Path) -> None:
    (new_project / "dvc.yaml").write_text("stages:\n  first:\n    deps: [raw.txt]\n")
    with pytest.raises(BadInput, match="DVC cannot read the project") as caught:
        load_graph(new_project)
    assert "\n" not in str(caught.value)
    (tmp_path / "bare").mkdir()
    with pytest.raises(BadInput, match="DVC cannot read the project"):
        load_graph(tmp_path / "bare")


def test_an_empty_graph() -> None:
    assert Graph(stages={}, order=()).until(None) == ()


def test_git_ignores_what_dvc_and_the_stores_hold(project: Path) -> None:
    graph = load_graph(project)
    outputs = [path for stage in graph.stages.values() for path in stage.outs if not path.startswith("data/metrics/")]
    paths = [*outputs, *graph.sources, ".ratchet/state/mlflow.db", ".ratchet/state/prefect/prefect.db"]
    command = ["git", "check-ignore", "--no-index", *paths]
    ignored = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False).stdout.split()
    assert set(ignored) == set(paths)
