from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.git import git
from tasks.registry_config import load_registry_config
from tasks.reproduce_target import find_target, tagged_versions, version_lock
from tests.versioned_project import retag, versioned_copy


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp() / "registry-base"
    root = versioned_copy(base, tmp_path_factory.mktemp("target") / "project")
    (root / ".ratchet/state/mlflow.db").unlink()
    return root


def test_a_tag_alone_tells_commit_stage_and_hashes(versioned: Path) -> None:
    expected = git(versioned, "rev-parse", "refs/tags/ratchet/policy/v2")
    for reference in ("policy/2", "policy/v2", "ratchet/policy/v2", "refs/tags/ratchet/policy/v2"):
        target = find_target(versioned, reference)
        assert (target.reference, target.commit, target.stage) == ("policy/2", expected, "ppo")
        assert set(target.lock) == {"sft", "ppo"}
        assert target.lock["ppo"].outs["data/models/ppo"] == target.output_md5
        assert "the git tag is believed" in target.notes[0]
    assert find_target(versioned, "judge/1").stage == "judge"
    assert not (versioned / ".ratchet/state/mlflow.db").exists()  # asking has made no empty store


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("policy", "is no version: wanted policy@champion"),
        ("nobody/3", "registered names are policy, reward-model, judge"),
        ("policy/9", "neither this repository nor its git remote has the tag ratchet/policy/v9"),
        ("policy@champion", r"only the registry knows which version.*tagged here are policy/1, policy/2"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(versioned: Path, reference: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        find_target(versioned, reference)


def test_a_tag_that_is_only_on_the_git_remote_is_fetched(versioned: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--no-tags", str(versioned), "clone")
    clone = tmp_path / "clone"
    assert tagged_versions(clone, load_registry_config(clone)) == {}
    assert find_target(clone, "policy/1").stage == "sft"
    assert list(tagged_versions(clone, load_registry_config(clone))) == [("policy", "1")]


def test_a_tree_that_is_not_what_the_lock_names_is_told(versioned: Path) -> None:
    retag(versioned, "policy/v7", "policy/v2", {"seed/ppo.json": "{}", "seed/ppo/config.json": "{}"})
    note = find_target(versioned, "policy/7").notes[-1]
    assert note.startswith("the tagged tree is not what the lock file says it was made from (1 difference(s))")
    assert "seed/ppo is " in note


def test_a_commit_without_a_record_is_refused(versioned: Path) -> None:
    run = git(versioned, "rev-parse", "refs/ratchet/runs/run-1")
    git(versioned, "update-ref", "refs/tags/ratchet/policy/v8", run)
    with pytest.raises(BadInput, match="has no record of how it was made"):
        find_target(versioned, "policy/8")
    empty = git(versioned, "commit-tree", git(versioned, "mktree"), "-m", "empty")
    assert version_lock(versioned, empty) == {}


def test_outside_git_nothing_can_be_rebuilt(versioned: Path, tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/registry.yaml").write_bytes((versioned / "mlflow/registry.yaml").read_bytes())
    with pytest.raises(BadInput, match="is no git repository"):
        find_target(tmp_path, "policy/1")
