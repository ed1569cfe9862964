import hashlib
import io
import pickle
from pathlib import Path

import pytest
import torch

from rlhf.checkpoint_file import Origin, files, read, step_of, usable, write

HERE = Origin(stage="sft", key="k1", world=1, rank=0)


def named(folder: Path, data: bytes, suffix: str = ".safetensors", step: int = 7) -> Path:
    """A file whose name is right for its bytes."""
    file = folder / f"{step:09d}-{hashlib.sha256(data).hexdigest()[:32]}{suffix}"
    file.write_bytes(data)
    return file


def test_what_is_written_is_read_with_its_settings(tmp_path: Path) -> None:
    file = write(tmp_path / "new", HERE, 12, {"weights": torch.arange(3)}, '{"threads": 1}')
    assert (step_of(file), usable(file, HERE)) == (12, True)
    state, settings = read(file)
    assert state["weights"].tolist() == [0, 1, 2]
    assert settings == '{"threads": 1}'
    assert files(tmp_path / "new") == [file]
    assert [path.name for path in (tmp_path / "new").iterdir()] == [file.name]


def test_a_file_that_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    (tmp_path / ".000000003.tmp").write_bytes(b"half")
    file = write(tmp_path, HERE, 12, {}, "{}")
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = write(tmp_path, HERE, 1, {"x": torch.ones(1)}, "{}")
    with pytest.raises(TypeError, match="is a set"):
        write(tmp_path, HERE, 2, {"x": {1}}, "{}")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_torn_file_is_named(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, HERE, 1, {"x": torch.ones(100)}, "{}")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    assert not usable(file, HERE)
    assert caplog.messages == [f"checkpoint {file} is torn or was changed; passing over it"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Origin(stage="ppo", key="k1", world=1, rank=0), "stage ppo, wanted sft"),
        (Origin(stage="sft", key="k2", world=1, rank=0), "key k2, wanted k1"),
        (Origin(stage="sft", key="k1", world=2, rank=1), "world 2, wanted 1; rank 1, wanted 0"),
    ],
)
def test_a_whole_file_of_another_run_is_named(
    tmp_path: Path, other: Origin, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path, other, 1, {}, "{}")
    assert usable(file, other)
    assert not usable(file, HERE)
    assert caplog.messages == [f"checkpoint {file} is of another run ({told}); passing over it"]


def test_a_renamed_step_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write(tmp_path, HERE, 1, {}, "{}")
    assert not usable(file.rename(file.with_name(file.name.replace("000000001", "000000009"))), HERE)
    assert "step 1, wanted 9" in caplog.text


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_is_never_run(
    tmp_path: Path, suffix: str, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO()
    if kind == "torch":
        torch.save({"x": Evil()}, stream)
    else:
        pickle.dump(Evil(), stream)
    file = named(tmp_path, stream.getvalue(), suffix)
    assert not usable(file, HERE)
    assert not Path("ran").exists()
    assert ("can hold a pickle" if suffix == ".pt" else "is no safetensors file") in caplog.text
    assert len(caplog.messages) == 1
