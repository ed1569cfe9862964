import random
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf.checkpoint import KEPT, Checkpoints, prune, rng_state, set_rng_state, stage_key


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_KEY", "k1")
    return tmp_path / ".ratchet/tmp/checkpoints/sft/k1"


def test_without_a_key_nothing_is_saved_or_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RATCHET_KEY", raising=False)
    checkpoints = Checkpoints("sft", every_seconds=0)
    checkpoints.save(1, {"a": 1})
    assert checkpoints.load() is None
    assert not checkpoints.due()
    assert list(tmp_path.iterdir()) == []


def test_the_newest_state_comes_back_exactly(keyed: Path) -> None:
    checkpoints = Checkpoints("sft", every_seconds=0)
    weights = torch.randn(3, 2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step, "weights": weights * step, "rows": [{"loss": 0.5}], "name": "x"})
    state = Checkpoints("sft").load()
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["weights"], weights * 3)
    assert state["rows"] == [{"loss": 0.5}]
    assert len(list(keyed.iterdir())) == KEPT
    checkpoints.clear()
    assert not keyed.exists()


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_torn_checkpoint_is_passed_over(keyed: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints("sft")
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})
    newest = max(keyed.iterdir())
    data = bytearray(newest.read_bytes())
    if damage == "truncate":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    state = checkpoints.load()
    assert state == {"step": 1}
    assert "is torn" in caplog.text


def test_a_pickle_inside_a_checkpoint_is_refused(keyed: Path) -> None:
    import hashlib
    import io
    import pickle

    buffer = io.BytesIO()
    torch.save({"evil": Path}, buffer)
    keyed.mkdir(parents=True)
    name = f"{1:09d}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:32]}.pt"
    (keyed / name).write_bytes(buffer.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        Checkpoints("sft").load()


def test_ranks_keep_files_of_their_own(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints("sft").save(1, {"rank": 0})
    monkeypatch.setenv("RANK", "1")
    assert Checkpoints("sft").load() is None
    Checkpoints("sft").save(1, {"rank": 1})
    assert Checkpoints("sft").load() == {"rank": 1}
    monkeypatch.setenv("RANK", "0")
    assert Checkpoints("sft").load() == {"rank": 0}


def test_every_generator_continues_where_it_was() -> None:
    state = rng_state()
    first = (random.random(), float(np.random.rand()), float(torch.rand(1)))
    set_rng_state(state)
    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == first


def write_project(root: Path) -> None:
    (root / "data").mkdir()
    (root / "data/in.txt").write_text("1")
    (root / "data/other.txt").write_text("1")
    (root / "dvc.yaml").write_text(
        "stages:\n  sft:\n    cmd: run\n    deps: [data/in.txt]\n    params: [seed, sft.lr]\n"
    )


def test_the_key_follows_what_the_stage_depends_on_and_nothing_else(tmp_path: Path) -> None:
    write_project(tmp_path)
    params = {"seed": 1, "sft": {"lr": 0.1, "unused": 1}}
    key = stage_key("sft", [], params, tmp_path)
    assert key == stage_key("sft", ["ignored"], params, tmp_path)
    (tmp_path / "data/other.txt").write_text("2")
    assert key == stage_key("sft", [], {**params, "sft": {"lr": 0.1, "unused": 2}}, tmp_path)
    assert key != stage_key("sft", [], {**params, "seed": 2}, tmp_path)
    (tmp_path / "data/in.txt").write_text("2")
    assert key != stage_key("sft", [], params, tmp_path)


def test_outside_dvc_the_key_is_of_the_arguments(tmp_path: Path) -> None:
    assert stage_key("sft", ["a"], {}, tmp_path) != stage_key("sft", ["b"], {}, tmp_path)


def test_old_keys_are_pruned_and_the_current_one_is_kept(keyed: Path) -> None:
    for key in ("old1", "old2", "old3", "k1"):
        (keyed.parent / key).mkdir(parents=True)
    prune("sft", "k1", keep=2)
    assert (keyed.parent / "k1").is_dir()
    assert len(list(keyed.parent.iterdir())) == 2


def test_a_path_with_a_parameter_in_it_is_followed(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(
        "stages: {ppo: {cmd: x, deps: ['models/${ppo.start_from}'], params: [ppo]}}", encoding="utf-8"
    )
    for name in ("sft", "dpo"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "weights").write_text(name, encoding="utf-8")
    params = {"ppo": {"start_from": "sft"}}
    key = stage_key("ppo", [], params, tmp_path)
    (tmp_path / "models/dpo/weights").write_text("other", encoding="utf-8")
    assert key == stage_key("ppo", [], params, tmp_path)
    (tmp_path / "models/sft/weights").write_text("other", encoding="utf-8")
    assert key != stage_key("ppo", [], params, tmp_path)
