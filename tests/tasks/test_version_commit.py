import json
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.git import git
from tasks.lock_file import parse_lock, read_lock
from tasks.reproduce_target import version_lock
from tasks.snapshot import snapshot
from tasks.version_commit import commit_version, version_record
from tests.registry_project import fresh_copy
from tests.tiny_project import command, dvc, edit
from tests.versioned_project import state_of, versioned_copy


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp() / "registry-base"
    return versioned_copy(base, tmp_path_factory.mktemp("version-commit") / "project")


def test_the_commit_has_the_runs_tree_and_the_present_lock_file(
    versioned: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp() / "registry-base"
    root = fresh_copy(base, tmp_path_factory.mktemp("dirty") / "project")
    away = root.parent / "dvc.lock"
    (root / "dvc.lock").rename(away)  # as before a first run
    (root / "seed" / "new.txt").write_text("untracked\n")
    git(root, "add", "params.yaml")
    edit(root, "batch: 8", "batch: 9")
    run = snapshot(root, "run-1")
    assert run is not None
    away.rename(root / "dvc.lock")
    before, lock = state_of(root), read_lock(root)
    md5 = lock["ppo"].outs["data/models/ppo"]
    commit = commit_version(root, run, "ppo", md5, lock, {"ppo": {"cpu": "x"}, "sft": None})
    assert commit is not None
    assert state_of(root) == before
    assert git(root, "rev-parse", f"{commit}^") == run
    changed = git(root, "diff", "--name-only", run, commit).splitlines()
    assert set(changed) == {"dvc.lock"}  # metrics lay in the tree already
    assert git(root, "show", f"{commit}:seed/new.txt") == "untracked"
    assert "batch: 9" in git(root, "show", f"{commit}:params.yaml")
    assert version_lock(root, commit)["ppo"].outs["data/models/ppo"] == md5
    assert json.loads(git(root, "show", f"{commit}:data/metrics/ppo.json"))["accuracy"] == 0.75
    record = version_record(root, commit)
    assert record is not None
    assert (record.stage, record.output_md5, list(record.differences)) == ("ppo", md5, [])
    assert dict(record.environments) == {"ppo": {"cpu": "x"}, "sft": None}
    assert version_record(root, run) is None


def test_checkout_at_the_tag_gives_code_parameters_and_outputs(versioned: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(versioned, "worktree", "add", "--detach", str(tree), "ratchet/policy/v2")
    dvc(tree, "config", "--local", "cache.dir", str(versioned / ".dvc" / "cache"))
    dvc(tree, "checkout", "-q")
    assert json.loads(command(tree, "dvc", "status", "--json")) == {}
    weights = "data/models/ppo/model.safetensors"
    assert (tree / weights).read_bytes() == (versioned / weights).read_bytes()
    git(versioned, "worktree", "remove", "--force", str(tree))


def test_a_late_publication_names_the_run_that_it_was_made_from(versioned: Path) -> None:
    lock, run = read_lock(versioned), git(versioned, "rev-parse", "refs/ratchet/runs/run-1")
    md5 = lock["ppo"].outs["data/models/ppo"]
    text = (versioned / "params.yaml").read_text()
    edit(versioned, "kl_coef: 0.05", "kl_coef: 0.5")  # MLflow was down, and the user has gone on working
    later = snapshot(versioned, "later")
    commit = commit_version(versioned, later, "ppo", md5, lock, {})
    assert commit is not None
    assert git(versioned, "rev-parse", f"{commit}^") == run
    # SFT does not read that parameter, so the later tree is as good for it.
    sft = commit_version(versioned, later, "sft", lock["sft"].outs["data/models/sft"], lock, {})
    assert sft is not None
    assert git(versioned, "rev-parse", f"{sft}^") == later
    (versioned / "params.yaml").write_text(text)


def test_when_no_tree_fits_the_message_says_what_differs(versioned: Path, caplog: pytest.LogCaptureFixture) -> None:
    lock = read_lock(versioned)
    text = git(versioned, "show", "HEAD:dvc.lock").replace("kl_coef: 0.05", "kl_coef: 0.07")
    other = parse_lock(text.encode(), "dvc.lock")
    commit = commit_version(versioned, "HEAD", "ppo", lock["ppo"].outs["data/models/ppo"], other, {})
    assert commit is not None
    record = version_record(versioned, commit)
    assert record is not None
    assert list(record.differences) == ["params.yaml: ppo.kl_coef is 0.05, and ppo was made with 0.07"]
    assert "kl_coef" in caplog.text


def test_without_git_or_a_base_there_is_no_commit(versioned: Path, tmp_path: Path) -> None:
    assert commit_version(versioned, None, "ppo", "ab.dir", {}, {}) is None
    assert commit_version(tmp_path, "HEAD", "ppo", "ab.dir", {}, {}) is None


def test_a_message_that_somebody_changed_is_told(versioned: Path) -> None:
    tree = git(versioned, "rev-parse", "HEAD^{tree}")
    broken = git(versioned, "commit-tree", tree, "-m", "x\n\nRatchet-Version: {")
    with pytest.raises(BadInput, match="cannot be read"):
        version_record(versioned, broken)
