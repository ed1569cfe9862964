from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.git import commit_of, files_of, git, inside_git, prefix, read_blobs, remote_of, run_git, without_password


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q", "-b", "main")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "ä b.txt").write_bytes(b"one\n\0two")
    (tmp_path / "outer.txt").write_text("outer\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_files_and_bytes_of_a_commit_are_told_from_the_projects_folder(repository: Path) -> None:
    inner = repository / "inner"
    assert prefix(inner) == "inner/"
    assert files_of(inner, "HEAD") == {"ä b.txt"}
    assert files_of(repository, "HEAD") == {"inner/ä b.txt", "outer.txt"}
    assert read_blobs(inner, "HEAD", ["ä b.txt", "absent"]) == {"ä b.txt": b"one\n\0two"}
    assert read_blobs(repository, "HEAD", ["inner", "outer.txt"]) == {"outer.txt": b"outer\n"}
    assert read_blobs(repository, "HEAD", []) == {}


def test_a_name_that_means_no_commit_is_none(repository: Path) -> None:
    assert commit_of(repository, "HEAD") == git(repository, "rev-parse", "HEAD")
    assert commit_of(repository, "nobody") is None
    assert commit_of(repository, "--version") is None
    assert not inside_git(repository.parent)


def test_hooks_and_the_variables_of_a_hook_are_left_out(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    monkeypatch.setenv("GIT_INDEX_FILE", str(repository / "another-index"))
    git(repository, "commit", "--allow-empty", "-qm", "second")
    assert git(repository, "log", "-1", "--format=%an %s") == "Ratchet second"


def test_a_refusal_is_one_sentence_without_passwords(repository: Path) -> None:
    with pytest.raises(BadInput, match=r"git checkout in .*did not match any") as caught:
        git(repository, "checkout", "nobody")
    assert "\n" not in str(caught.value)
    assert without_password("https://me:word@host/x and ssh://you@host") == "https://me@host/x and ssh://you@host"


def test_the_remote_is_the_one_that_the_branch_follows(repository: Path) -> None:
    assert remote_of(repository) is None
    git(repository, "remote", "add", "elsewhere", "x")
    assert remote_of(repository) is None
    git(repository, "remote", "add", "origin", "y")
    assert remote_of(repository) == "origin"
    git(repository, "config", "branch.main.remote", "elsewhere")
    assert remote_of(repository) == "elsewhere"
    git(repository, "checkout", "-q", "--detach")
    assert remote_of(repository) == "origin"
    assert remote_of(repository.parent) is None


def test_git_that_takes_too_long_is_given_up(repository: Path) -> None:
    # `git` reads an alias of its own as a command of the shell.
    with pytest.raises(BadInput, match=r"git -c in .*: took more than 0 s"):
        run_git(repository, "-c", "alias.wait=!exec sleep 60", "wait", seconds=0.2)
