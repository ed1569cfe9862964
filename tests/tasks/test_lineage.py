import shutil
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.lineage import facts, names_version, origin_of, versions_from
from tasks.mlflow_store import connect
from tasks.publish import publish
from tests.registry_project import fresh_copy
from tests.tiny_project import dvc
from tests.versioned_project import versioned_copy

DEMONSTRATIONS = "data/validated/demonstrations"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions policy/1 (sft), policy/2 (ppo) and judge/1, tagged in git and published."""
    base = tmp_path_factory.getbasetemp() / "registry-base"
    root = versioned_copy(base, tmp_path_factory.mktemp("lineage") / "project")
    publish(root)
    connect(root).set_registered_model_alias("policy", "champion", "2")
    return root


def test_from_a_version_to_its_data_and_code(root: Path) -> None:
    found = origin_of(root, "policy@champion")
    assert (found.reference, found.aliases, found.stage) == ("policy/2", ("challenger", "champion"), "ppo")
    assert found.tag == "ratchet/policy/v2"
    assert found.commit is not None
    assert set(found.stages) == {"sft", "ppo"}
    assert set(found.data) == {DEMONSTRATIONS}
    assert found.parents("ppo") == ["sft"]
    assert found.sources("ppo") == found.sources("sft") == found.data
    assert found.registered == {"sft": "policy/1", "ppo": "policy/2"}
    document = found.document()
    assert document["parents"] == {"sft": "policy/1"}
    assert document["stages"][0]["params"]["sft"]["epochs"] == 2
    assert set(origin_of(root, "ratchet/judge/v1").data) == {DEMONSTRATIONS, "data/validated/judge_pairs"}
    with pytest.raises(BadInput, match="policy: there is no version 'policy/9'; known are 1, 2"):
        origin_of(root, "policy/9")


def test_from_a_file_to_the_versions_made_from_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "data")
    file = Path("validated/judge_pairs/train.jsonl")  # as one types it in that folder
    path, present, uses = versions_from(root, file)
    assert path == "data/validated/judge_pairs/train.jsonl"
    assert present is not None
    assert [(use.version, use.same) for use in uses] == [("judge/1", True)]
    _, _, uses = versions_from(root, Path(f"{DEMONSTRATIONS}.dvc"))
    assert [(use.version, use.stage, use.same) for use in uses] == [
        ("policy/1", "sft", True),
        ("policy/2", "ppo", True),
        ("judge/1", "judge", True),
    ]
    (root / DEMONSTRATIONS / "train.jsonl").unlink()
    (root / DEMONSTRATIONS / "train.jsonl").write_text('{"id": "another"}\n')
    assert {use.same for use in versions_from(root, Path(DEMONSTRATIONS) / "train.jsonl")[2]} == {False}
    dvc(root, "checkout", "-q", "-f", f"{DEMONSTRATIONS}.dvc")
    with pytest.raises(BadInput, match="no version was made from one"):
        versions_from(root, Path("data/raw/nothing.jsonl"))
    with pytest.raises(BadInput, match="lies outside of the project"):
        versions_from(root, root.parent / "other.jsonl")


def test_without_git_the_registrys_record_tells(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = fresh_copy(tmp_path_factory.getbasetemp() / "registry-base", tmp_path / "project")
    publish(root)
    shutil.rmtree(root / ".git")
    found = origin_of(root, "policy/2")
    assert (found.commit, set(found.stages)) == (None, {"sft", "ppo"})
    assert found.registered["sft"] == "policy/1"
    assert set(found.data) == {DEMONSTRATIONS}
    assert "by the registry's record alone" in found.notes[0]


def test_a_version_is_told_from_a_file(root: Path) -> None:
    assert names_version(root, "policy@champion")
    assert names_version(root, "ratchet/judge/v1")
    assert not names_version(root, "data/raw/pairs.jsonl")
    assert not names_version(root, "data/1")


def test_what_it_was_computed_on_in_one_line() -> None:
    assert facts({"torch": "2.9", "threads": 2, "gpus": []}) == "threads 2, torch 2.9"
    assert facts(None) == "not known"
