import shutil
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.dvc_store import dvc_places, keep_weights, object_path, output_files, remote_has
from tasks.lock_file import output_hash
from tests.tiny_project import dvc

pytest_plugins = ["tests.registry_fixtures"]


def weights(root: Path) -> str:
    md5 = output_hash(root, "ppo")
    assert md5 is not None
    return md5


def test_the_cache_lists_the_files_of_a_folder(unpublished: Path) -> None:
    places = dvc_places(unpublished)
    assert places.cache == unpublished / ".dvc" / "cache"
    assert places.remote is None
    files = output_files(places, weights(unpublished), "data/models/ppo")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert output_files(places, "ab" * 16, "data/x.csv") == {"x.csv": "ab" * 16}
    with pytest.raises(BadInput, match="no readable listing"):
        output_files(places, "ab" * 16 + ".dir", "data/models/ppo")


def test_kept_weights_outlive_gc_without_taking_room(unpublished: Path) -> None:
    md5 = weights(unpublished)
    kept = Path(keep_weights(unpublished, md5, "data/models/ppo"))
    assert keep_weights(unpublished, md5, "data/models/ppo") == str(kept)
    files = output_files(dvc_places(unpublished), md5, "data/models/ppo")
    for name in (md5, *files.values()):
        assert object_path(kept, name).samefile(object_path(dvc_places(unpublished).cache, name))


def test_weights_that_are_nowhere_cannot_be_promoted(unpublished: Path) -> None:
    md5 = output_hash(unpublished, "judge", "data/models/judge")
    assert md5 is not None
    places = dvc_places(unpublished)
    victim = object_path(places.cache, output_files(places, md5, "data/models/judge")["reward.json"])
    content = victim.read_bytes()
    victim.unlink()
    with pytest.raises(BadInput, match=r"1 of \d+ files are neither in the DVC cache"):
        keep_weights(unpublished, md5, "data/models/judge")
    victim.write_bytes(content)


def test_what_a_remote_holds_need_not_be_kept(unpublished: Path, tmp_path: Path) -> None:
    md5 = output_hash(unpublished, "sft")
    assert md5 is not None
    assert not remote_has(unpublished, [md5])
    dvc(unpublished, "remote", "add", "-d", "origin", str(tmp_path / "remote"))
    assert dvc_places(unpublished).remote == str(tmp_path / "remote")
    assert not remote_has(unpublished, [md5])
    dvc(unpublished, "push", "-q", "sft")
    assert keep_weights(unpublished, md5, "data/models/sft") == "remote"
    dvc(unpublished, "remote", "remove", "origin")
    shutil.rmtree(tmp_path / "remote")


def test_a_password_in_an_address_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    url = "https://me:" + "hunter2@example.org/x"
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n remote = r\n['remote \"r\"']\n url = {url}\n")
    assert dvc_places(tmp_path).remote == "https://me@example.org/x"
