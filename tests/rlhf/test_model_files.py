import io
import pickle
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from rlhf.errors import BadInput
from rlhf.model_files import PICKLE_SUFFIXES, check_model_folder, is_pickle, refuse_traps


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "project/model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def pickled(kind: str) -> bytes:
    value, stream = {"a": [1, 2.5, "x"], "b": Path("x")}, io.BytesIO()
    if kind == "torch":
        torch.save({"x": torch.ones(2)}, stream)
    elif kind == "old torch":
        torch.save({"x": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    elif kind == "tar":
        with tarfile.open(fileobj=stream, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("pickle"))
    else:
        stream.write(pickle.dumps(value, protocol=int(kind)))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["torch", "old torch", "tar", *"012345"])
def test_a_pickle_of_any_protocol_beside_the_weights_is_refused(model: Path, kind: str) -> None:
    check_model_folder(model)
    file = model / "extra/training_args.bin"
    file.parent.mkdir()
    file.write_bytes(pickled(kind))
    with pytest.raises(BadInput, match=r"extra/training_args\.bin: a pickle, .* delete it") as caught:
        check_model_folder(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", PICKLE_SUFFIXES)
def test_every_name_of_pickles_is_looked_into(model: Path, suffix: str) -> None:
    (model / f"weights{suffix}").write_bytes(pickled("4"))
    with pytest.raises(BadInput, match="a pickle"):
        refuse_traps(model)


def test_other_files_of_those_names_are_left_alone(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "plain.bin", "w") as archive:
        archive.writestr("readme.txt", "x")
    draws = random.Random(0)
    (tmp_path / "weights.bin").write_bytes(b"\0" + draws.randbytes(10_000))
    (tmp_path / "text.bin").write_text("the quick brown fox\n")
    (tmp_path / "empty.bin").write_bytes(b"")
    assert [file.name for file in sorted(tmp_path.iterdir()) if is_pickle(file)] == []


def test_a_folder_that_lacks_something_is_told_what(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="no weights"):
        check_model_folder(model)
    (model / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no config\.json"):
        check_model_folder(model)
    with pytest.raises(BadInput, match="no such model folder"):
        check_model_folder(tmp_path / "none")


def test_a_link_that_leads_out_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path / "project")
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    (model / "generation_config.json").symlink_to(outside)
    with pytest.raises(BadInput, match=r"generation_config\.json: a link to .*secret\.json, outside of this model"):
        check_model_folder(model)
    (model / "generation_config.json").unlink()
    (model / "up").symlink_to("../../..")
    with pytest.raises(BadInput, match="up: a link"):
        check_model_folder(model)


def test_links_inside_the_project_and_into_stores_are_usual(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "project")
    (model / "again.json").symlink_to("config.json")
    elsewhere = tmp_path / "project/shared.json"
    elsewhere.write_text("{}")
    (model / "shared.json").symlink_to(elsewhere)
    stored = tmp_path / "cache/files/md5/0a" / ("b1" * 15)
    stored.parent.mkdir(parents=True)
    stored.write_text("{}")
    (model / "from_dvc.json").symlink_to(stored)
    check_model_folder(model)


def test_a_snapshot_of_the_hub_links_to_its_own_blobs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path.parent / f"{tmp_path.name}-hub/models--a--b"
    snapshot = home / "snapshots/0123"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (home / "blobs").mkdir(exist_ok=True)
        (home / "blobs" / name).write_bytes(b"")
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    check_model_folder(snapshot)
    (home / "other").write_bytes(b"")
    (snapshot / "x.json").symlink_to("../../other")
    with pytest.raises(BadInput, match="a link to"):
        check_model_folder(snapshot)
