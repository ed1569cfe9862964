import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.errors import BadInput, StageFailed
from tasks.graph import load_graph
from tasks.tracked_copy import bring_in


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project that real DVC can work in, without git."""
    project = tmp_path / "project"
    (project / "data" / "raw").mkdir(parents=True)
    (project / "dvc.yaml").write_text("stages: {}\n")
    line = [sys.executable, "-P", "-m", "dvc", "init", "--no-scm", "--quiet"]
    subprocess.run(line, cwd=project, check=True, capture_output=True)
    return project


def source(tmp_path: Path, name: str, content: str) -> Path:
    path = tmp_path / name
    path.write_text(content)
    return path


def test_a_file_is_added_kept_and_replaced(root: Path, tmp_path: Path) -> None:
    target, pointer = root / "data" / "raw" / "mine.jsonl", root / "data" / "raw" / "mine.jsonl.dvc"
    first, second = source(tmp_path, "first", "one"), source(tmp_path, "second", "two")
    assert bring_in(root, {"": first}, target) == "added"
    before = pointer.read_text()
    assert bring_in(root, {"": first}, target) == "unchanged"
    assert bring_in(root, {"": second}, target) == "replaced"
    assert target.read_text() == "two"
    assert pointer.read_text() != before
    assert sorted(path.name for path in target.parent.iterdir() if "mine" in path.name) == [
        "mine.jsonl",
        "mine.jsonl.dvc",
    ]


def test_a_failing_dvc_leaves_everything_as_it_was(root: Path, tmp_path: Path) -> None:
    target = root / "data" / "raw" / "set"
    bring_in(root, {"a.jsonl": source(tmp_path, "a", "one")}, target)
    (root / ".dvc" / "config").write_text("[core\nbroken")
    with pytest.raises(StageFailed, match=r"dvc add data/raw/set` failed: .*config.*; solve that") as caught:
        bring_in(root, {"b.jsonl": source(tmp_path, "b", "two")}, target)
    assert "Having any troubles" not in str(caught.value)
    assert [path.name for path in target.iterdir()] == ["a.jsonl"]
    with pytest.raises(StageFailed):
        bring_in(root, {"": source(tmp_path, "b", "two")}, root / "data" / "raw" / "new.jsonl")
    assert sorted(path.name for path in target.parent.iterdir() if not path.name.startswith(".git")) == [
        "set",
        "set.dvc",
    ]


def test_what_dvc_does_not_track_is_never_replaced(root: Path, tmp_path: Path) -> None:
    target = root / "data" / "raw" / "mine.jsonl"
    target.write_text("precious")
    with pytest.raises(BadInput, match="not tracked by DVC"):
        bring_in(root, {"": source(tmp_path, "a", "one")}, target)
    assert target.read_text() == "precious"


def test_dvc_finds_what_was_brought_in_despite_our_gitignore(tmp_path: Path) -> None:
    for folder in ("data/raw", "data/base"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(Path(__file__).parents[2] / ".gitignore", tmp_path / ".gitignore")
    for line in (["git", "init", "-q"], [sys.executable, "-P", "-m", "dvc", "init", "-q"]):
        subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)
    bring_in(tmp_path, {"": source(tmp_path, "a", "one")}, tmp_path / "data" / "raw" / "a.jsonl")
    bring_in(tmp_path, {"w": source(tmp_path, "w", "two")}, tmp_path / "data" / "base" / "small")
    assert sorted(load_graph(tmp_path).sources) == ["data/base/small", "data/raw/a.jsonl"]
    listed = ["git", "status", "--porcelain", "-uall", "data"]
    seen = subprocess.run(listed, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in seen if name != "??"] == ["data/base/small.dvc", "data/raw/a.jsonl.dvc"]
