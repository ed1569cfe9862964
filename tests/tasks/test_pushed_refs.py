from pathlib import Path

import pytest

from tasks.git import git
from tasks.pushed_refs import Pushed, push_refs
from tasks.snapshot import snapshot, tag_version
from tests.tiny_project import command, copy_of, dvc, make_project


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a tag on a commit that stands on a run's snapshot, a DVC remote, and no git remote yet."""
    root = make_project(tmp_path_factory.mktemp("pushed") / "project")
    commit = snapshot(root, "run-1")
    assert commit is not None
    child = git(root, "commit-tree", git(root, "rev-parse", f"{commit}^{{tree}}"), "-p", commit, "-m", "version")
    tag_version(root, "policy", 1, child)
    dvc(root, "remote", "add", "-q", "-d", "store", "../store")
    return root


@pytest.fixture
def versioned(template: Path, tmp_path: Path) -> Path:
    return copy_of(template, tmp_path / "project")


def bare(folder: Path) -> Path:
    folder.mkdir()
    command(folder, "git", "init", "-q", "--bare")
    return folder


def refs(folder: Path) -> dict[str, str]:
    lines = git(folder, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    return {line.split()[0]: line.split()[1] for line in lines}


def test_the_tag_and_its_run_are_pushed_once_and_no_branch(versioned: Path, tmp_path: Path) -> None:
    assert push_refs(versioned) == Pushed()  # no git remote
    git(versioned, "commit", "--allow-empty", "-qm", "the user's own")
    git(versioned, "remote", "add", "origin", str(bare(tmp_path / "bare.git")))
    pushed = push_refs(versioned)
    assert (sorted(pushed.done), pushed.failure) == (["refs/ratchet/runs/run-1", "refs/tags/ratchet/policy/v1"], None)
    assert sorted(refs(tmp_path / "bare.git")) == sorted(pushed.done)
    (tmp_path / "bare.git").rename(tmp_path / "away.git")  # nothing is new, so nobody is asked
    assert push_refs(versioned) == Pushed()


def test_without_a_dvc_remote_nothing_is_pushed(versioned: Path, tmp_path: Path) -> None:
    git(versioned, "remote", "add", "origin", str(bare(tmp_path / "bare.git")))
    dvc(versioned, "remote", "remove", "-q", "store")
    assert push_refs(versioned) == Pushed()
    assert refs(tmp_path / "bare.git") == {}


def test_a_remote_that_is_away_is_one_sentence_and_the_next_call_catches_up(versioned: Path, tmp_path: Path) -> None:
    git(versioned, "remote", "add", "origin", f"{tmp_path}/bare.git")
    failure = push_refs(versioned).failure
    assert failure is not None
    assert failure.startswith("the git remote origin did not take the tags of the versions: ")
    assert failure.endswith("what was published stays published, and `ratchet publish` tries again")
    assert "\n" not in failure
    bare(tmp_path / "bare.git")
    assert len(push_refs(versioned).done) == 2


def test_a_tag_that_the_remote_has_on_another_commit_stays_and_the_others_go(versioned: Path, tmp_path: Path) -> None:
    remote = bare(tmp_path / "bare.git")
    git(versioned, "remote", "add", "origin", str(remote))
    push_refs(versioned)
    before = refs(remote)
    git(versioned, "update-ref", "refs/tags/ratchet/policy/v1", git(versioned, "rev-parse", "refs/ratchet/runs/run-1"))
    git(versioned, "update-ref", "refs/tags/ratchet/judge/v1", before["refs/tags/ratchet/policy/v1"])
    pushed = push_refs(versioned)
    assert pushed.done == ["refs/tags/ratchet/judge/v1"]
    assert pushed.failure is not None
    assert "refs/tags/ratchet/policy/v1 [rejected]" in pushed.failure
    assert refs(remote)["refs/tags/ratchet/policy/v1"] == before["refs/tags/ratchet/policy/v1"]


def test_a_password_in_the_address_is_not_told_or_kept(versioned: Path) -> None:
    word = "hunter" + "2"
    git(versioned, "remote", "add", "origin", f"https://me:{word}@127.0.0.1:9/x.git")
    failure = push_refs(versioned).failure
    assert failure is not None
    assert word not in failure
