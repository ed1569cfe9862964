from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.snapshot import snapshot, tag_version
from tests.tiny_project import command


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    return command(folder, "git", *identity, *arguments).strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / ".gitignore").write_text("/.ratchet/\n*.secret\n")
    (tmp_path / "kept.txt").write_text("kept\n")
    (tmp_path / "gone.txt").write_text("gone\n")
    return tmp_path


def commit_all(folder: Path) -> str:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return git(folder, "rev-parse", "HEAD")


def test_changed_new_and_removed_files_are_in_it_and_nothing_else_moves(repository: Path) -> None:
    head = commit_all(repository)
    (repository / "staged.txt").write_text("staged\n")
    git(repository, "add", "staged.txt")
    (repository / "kept.txt").write_text("changed\n")
    (repository / "new.txt").write_text("new\n")
    (repository / "x.secret").write_text("no\n")
    (repository / "gone.txt").unlink()
    before = git(repository, "status", "--porcelain"), git(repository, "diff", "--cached", "--name-only")
    commit = snapshot(repository, "run-1")
    assert commit is not None
    files = git(repository, "ls-tree", "-r", "--name-only", commit).splitlines()
    assert files == [".gitignore", "kept.txt", "new.txt", "staged.txt"]
    assert git(repository, "show", f"{commit}:kept.txt") == "changed"
    assert git(repository, "rev-parse", f"{commit}^") == head
    assert git(repository, "rev-parse", "refs/ratchet/runs/run-1") == commit
    assert git(repository, "rev-parse", "main") == head
    assert (git(repository, "status", "--porcelain"), git(repository, "diff", "--cached", "--name-only")) == before
    assert git(repository, "log", "-1", "--format=%an", commit) == "Ratchet"


def test_a_clean_tree_is_its_own_snapshot(repository: Path) -> None:
    head = commit_all(repository)
    assert snapshot(repository, "run-1") == head
    assert git(repository, "rev-parse", "refs/ratchet/runs/run-1") == head


def test_a_repository_without_a_commit(repository: Path) -> None:
    commit = snapshot(repository, "run-1")
    assert commit is not None
    assert "kept.txt" in git(repository, "ls-tree", "--name-only", commit)
    assert git(repository, "rev-list", "--count", commit) == "1"
    assert git(repository, "branch", "--list") == ""


def test_outside_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert snapshot(tmp_path, "run-1") is None
    assert tag_version(tmp_path, "policy", 1, "0" * 40) is None


def test_a_version_keeps_its_commit(repository: Path) -> None:
    first = commit_all(repository)
    assert tag_version(repository, "policy", 3, first) == "refs/tags/ratchet/policy/v3"
    assert tag_version(repository, "policy", 3, first) == "refs/tags/ratchet/policy/v3"
    (repository / "kept.txt").write_text("changed\n")
    second = snapshot(repository, "run-1")
    assert second is not None
    with pytest.raises(BadInput, match="never re-tagged"):
        tag_version(repository, "policy", 3, second)
    assert git(repository, "rev-parse", "refs/tags/ratchet/policy/v3") == first


def test_a_run_id_cannot_leave_its_folder(repository: Path) -> None:
    with pytest.raises(BadInput, match="run id"):
        snapshot(repository, "../heads/main")
