from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.commit_sources import pointed
from tasks.dvc_store import dvc_places, object_path, output_files
from tasks.reproduce_target import Target, find_target
from tasks.reproduce_tree import default_folder, prepare, remove
from tests.tiny_project import dvc
from tests.versioned_project import state_of, versioned_copy


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp() / "registry-base"
    root = versioned_copy(base, tmp_path_factory.mktemp("tree") / "project")
    (root / ".ratchet/state/mlflow.db").unlink()
    return root


@pytest.fixture
def target(versioned: Path) -> Iterator[Target]:
    found = find_target(versioned, "policy/2")
    yield found
    remove(versioned, default_folder(versioned, found))


def raw_objects(root: Path) -> set[str]:
    """Hashes of the raw data, listing and files, that policy/2 needs."""
    pointer = root / "data/validated/demonstrations.dvc"
    ((path, md5),) = pointed("data/validated/demonstrations.dvc", pointer.read_bytes())
    return {md5, *output_files(dvc_places(root), md5, path).values()}


def objects(cache: Path) -> set[str]:
    return {path.parent.name + path.name for path in (cache / "files" / "md5").glob("*/*")}


def test_the_tree_has_the_commit_and_only_raw_data_and_the_user_sees_nothing(versioned: Path, target: Target) -> None:
    before = state_of(versioned)
    folder = default_folder(versioned, target)
    tree = prepare(versioned, target, folder, start=None, on_line=silent)
    assert tree.computed == ("sft", "ppo")
    assert not tree.resumed
    assert objects(folder / ".dvc" / "cache") == raw_objects(versioned)
    assert not (folder / "dvc.lock").exists()
    assert (folder / "data/validated/demonstrations/train.jsonl").is_file()
    assert not (folder / "data/validated/judge_pairs").exists()  # ppo does not read it
    assert not (folder / "data/models/sft").exists()
    assert state_of(versioned)[:-2] == before[:-2]  # all but the list of work trees
    assert prepare(versioned, target, folder, start=None, on_line=silent).resumed
    again = prepare(versioned, target, folder, start="ppo", on_line=silent)  # another question, so another tree
    assert (again.computed, again.resumed) == (("ppo",), False)
    assert (folder / "data/models/sft/model.safetensors").is_file()
    remove(versioned, folder)
    assert state_of(versioned) == before


def test_raw_data_come_from_the_remote_where_the_cache_has_lost_them(
    versioned: Path, target: Target, tmp_path: Path
) -> None:
    folder, cache = default_folder(versioned, target), dvc_places(versioned).cache
    (victim,) = [name for name in raw_objects(versioned) if not name.endswith(".dir")]
    dvc(versioned, "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    dvc(versioned, "push", "-q", "data/validated/demonstrations")
    content = object_path(cache, victim).read_bytes()
    object_path(cache, victim).unlink()
    said: list[str] = []
    prepare(versioned, target, folder, start=None, on_line=said.append)
    assert said == [f"fetching data/validated/demonstrations from {tmp_path / 'store'}"]
    assert (folder / "data/validated/demonstrations/train.jsonl").read_bytes() == content
    remove(versioned, folder)
    # Bytes that are not what their name says count as lost.
    object_path(cache, victim).write_bytes(b"corrupted")
    dvc(versioned, "remote", "remove", "-q", "store")
    with pytest.raises(
        BadInput, match=r"raw data of policy/2, and the DVC cache has not got it, and there is no remote"
    ):
        prepare(versioned, target, folder, start=None, on_line=silent)
    (tmp_path / "empty").mkdir()
    dvc(versioned, "remote", "add", "-q", "-d", "store", str(tmp_path / "empty"))
    with pytest.raises(BadInput, match=r"neither the DVC cache nor the remote .*/empty has it; bring"):
        prepare(versioned, target, folder, start=None, on_line=silent)
    dvc(versioned, "remote", "remove", "-q", "store")
    object_path(cache, victim).write_bytes(content)


def test_a_folder_of_somebody_else_and_a_stage_that_it_does_not_need_are_refused(
    versioned: Path, target: Target, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="is not empty and no work tree of `ratchet reproduce`"):
        prepare(versioned, target, tmp_path / "mine", start=None, on_line=silent)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(BadInput, match="--from judge: policy/2 is made by sft, ppo; name one of these"):
        prepare(versioned, target, default_folder(versioned, target), start="judge", on_line=silent)
