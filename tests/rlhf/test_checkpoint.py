import hashlib
import io
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf.checkpoint import KEPT, Checkpoints, disk_use, merge_ranks, prune, rng_state, set_rng_state
from rlhf.errors import StageFailed


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
    assert "is torn or was changed" in caplog.text


@pytest.mark.parametrize("trap", ["old", "pickle", "stage", "key"])
def test_what_came_from_elsewhere_is_passed_over_and_pushes_nothing_out(
    keyed: Path, trap: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints("sft")
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})
    for step in (8, 9):
        if trap in ("old", "pickle"):
            buffer = io.BytesIO()
            torch.save({"state": {"step": step}, "settings": "{}"}, buffer)
            digest, suffix = (
                hashlib.sha256(buffer.getvalue()).hexdigest()[:32],
                ".pt" if trap == "old" else ".safetensors",
            )
            (keyed / f"{step:09d}-{digest}{suffix}").write_bytes(buffer.getvalue())
        else:
            with monkeypatch.context() as elsewhere:
                elsewhere.setenv("RATCHET_KEY", "k2" if trap == "key" else "k1")
                other = Checkpoints("ppo" if trap == "stage" else "sft")
                other.save(step, {"step": step})
            assert other.folder is not None
            for file in other.folder.iterdir():
                file.rename(keyed / file.name)
    resumed = Checkpoints("sft")
    assert resumed.load() == {"step": 2}
    assert len([line for line in caplog.messages if "passing over it" in line]) == 2
    resumed.save(3, {"step": 3})
    assert sorted(int(file.name[:9]) for file in keyed.iterdir()) == [2, 3]
    assert Checkpoints("sft").load() == {"step": 3}


def test_a_bad_file_of_the_same_step_does_not_hide_the_good_one(keyed: Path) -> None:
    checkpoints = Checkpoints("sft")
    checkpoints.save(2, {"step": 2})
    for digit in "0f":
        (keyed / f"000000002-{digit * 32}.safetensors").write_bytes(b"torn")
    assert checkpoints.load() == {"step": 2}
    checkpoints.save(3, {"step": 3})
    assert sorted(file.stat().st_size > 4 for file in keyed.iterdir()) == [True, True]


def test_a_checkpoint_that_cannot_be_written_ends_the_stage_with_one_sentence(
    keyed: Path,
) -> None:
    checkpoints = Checkpoints("sft")
    checkpoints.save(1, {"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(StageFailed, match=r"checkpoints/sft/k1: the checkpoint of step 2 cannot be .* free space"):
            checkpoints.save(2, {"step": 2, "weights": torch.zeros(2**16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.load() == {"step": 1}
    assert len(list(keyed.iterdir())) == 1


def test_clearing_leaves_nothing_even_of_a_process_that_was_killed_while_it_cleared(keyed: Path) -> None:
    checkpoints = Checkpoints("sft")
    checkpoints.save(1, {"step": 1})
    gone = keyed.with_name(".k1.gone")
    keyed.rename(gone)  # as far as the other one came
    assert Checkpoints("sft").load() is None
    prune("sft", "k1")
    assert not gone.exists()
    checkpoints.save(1, {"step": 1})
    checkpoints.clear()
    checkpoints.clear()
    assert list(keyed.parent.iterdir()) == []


def test_disk_use_is_told_by_stage_and_bounded_by_what_is_kept(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_use() == {}
    for key in ("k0", "k1", "k2"):
        monkeypatch.setenv("RATCHET_KEY", key)
        prune("sft", key)
        for step in range(5):
            Checkpoints("sft").save(step, {"weights": torch.zeros(1000)})
    Checkpoints("ppo").save(1, {"weights": torch.zeros(1000)})
    one = sum(file.stat().st_size for file in keyed.parent.parent.rglob("ppo/*/*"))
    assert disk_use(keyed.parent.parent) == {"ppo": one, "sft": 2 * KEPT * one}


def save_as(monkeypatch: pytest.MonkeyPatch, rank: int, world: int, step: int, state: dict[str, object]) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    Checkpoints("sft").save(step, state)


def piece(start: int, values: list[float]) -> dict[str, object]:
    tensor = torch.tensor(values)
    pieces = {"w": {"start": start, "shape": [2, 2], "step": 7.0, "values": {"weight": tensor, "exp_avg": tensor / 2}}}
    return {"pieces": pieces, "counters": [7, 0, 0]}


def test_what_two_ranks_left_is_put_together_for_one(
    keyed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for rank, engine in enumerate((piece(0, [1.0, 2.0, 3.0]), piece(3, [4.0]))):
        monkeypatch.setenv("RATCHET_ROUNDING_SETTINGS", '{"launch": "torchrun --nproc-per-node=2", "threads": 1}')
        state = {"engine": engine, "recent": {"loss": 1.0 + rank}, "done": 7, "shown": [rank]}
        save_as(monkeypatch, rank, 2, 7, state)
        assert len(list((keyed / f"ranks-2/{rank}").iterdir())) == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RATCHET_ROUNDING_SETTINGS", '{"launch": "python", "threads": 1}')
    caplog.set_level("INFO")
    found = Checkpoints("sft").load()
    assert found is not None
    whole = found["engine"]["pieces"]["w"]["values"]
    assert whole["weight"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert whole["exp_avg"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert (found["recent"], found["done"], found["shown"]) == ({"loss": 3.0}, 7, [0])
    assert "step 7, which 2 rank(s) wrote, on 1" in caplog.text
    assert "launch was 'torchrun --nproc-per-node=2' and is 'python'" in caplog.text
    assert "threads was" not in caplog.text


def test_a_step_counts_only_when_every_rank_has_it(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in range(2):
        save_as(monkeypatch, rank, 2, 5, {"step": 5})
    save_as(monkeypatch, 0, 2, 6, {"step": 6})
    # Rank 1 was killed before it had written step 6, and its file of step 7 is torn.
    save_as(monkeypatch, 0, 2, 7, {"step": 7})
    save_as(monkeypatch, 1, 2, 7, {"step": 7})
    next((keyed / "ranks-2/1").glob("000000007*")).write_bytes(b"torn")
    save_as(monkeypatch, 0, 1, 4, {"step": 4})
    # Rank 0 keeps two files, so step 5 is gone there: what one process wrote is the newest that is whole.
    assert Checkpoints("sft").load() == {"step": 4}


def test_a_step_that_one_rank_alone_has_pushes_out_none_that_all_have(
    keyed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, steps in enumerate(((6, 7), (6,))):  # killed while they saved step 7
        for step in steps:
            save_as(monkeypatch, rank, 2, step, {"step": step})
    monkeypatch.setattr("rlhf.distributed.gather_objects", lambda found: [found, [(6, 2)]])
    monkeypatch.setenv("RANK", "0")
    resumed = Checkpoints("sft")
    assert resumed.load() == {"step": 6}
    resumed.save(8, {"step": 8})
    steps = sorted(int(file.name[:9]) for file in (keyed / "ranks-2/0").iterdir())
    assert steps == [6, 8]
    resumed.save(9, {"step": 9})
    assert sorted(int(file.name[:9]) for file in (keyed / "ranks-2/0").iterdir()) == [8, 9]


def test_the_newest_step_wins_whoever_wrote_it(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_as(monkeypatch, 0, 1, 9, {"step": 9})
    save_as(monkeypatch, 0, 2, 8, {"step": 8})
    save_as(monkeypatch, 1, 2, 8, {"step": 8})
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Checkpoints("sft").load() == {"step": 9}
    save_as(monkeypatch, 0, 2, 10, {"step": 10})
    save_as(monkeypatch, 1, 2, 10, {"step": 10})
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert Checkpoints("sft").load() == {"step": 10}
    Checkpoints("sft").clear()
    assert not keyed.exists()


def test_what_is_kept_beside_checkpoints_is_found_by_other_ranks(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (keyed / "member-0").mkdir(parents=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    checkpoints = Checkpoints("sft")
    assert checkpoints.folder is not None
    mine = checkpoints.folder / "member-0"
    assert checkpoints.found(mine) == Path(".ratchet/tmp/checkpoints/sft/k1/member-0")
    assert checkpoints.found(checkpoints.folder / "member-1") == checkpoints.folder / "member-1"
    mine.mkdir(parents=True)
    assert checkpoints.found(mine) == mine
    assert checkpoints.found(None) is None


def test_partial_sums_keep_their_sum_over_ranks() -> None:
    states = [{"recent": {"loss": 1.0}, "rows": 3}, {"recent": {"loss": 2.0}, "rows": 3}, {"recent": {}, "rows": 3}]
    assert merge_ranks(states, 2) == {"recent": {"loss": 1.5}, "rows": 3}


def test_a_save_that_takes_long_is_not_repeated_soon(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 40.0, 40.0, 70.0, 839.0, 840.0])
    monkeypatch.setattr("rlhf.checkpoint.time.monotonic", lambda: next(clock))
    checkpoints = Checkpoints("sft", every_seconds=30.0)
    assert checkpoints.due()
    checkpoints.save(1, {"step": 1})
    # It took 30 s and may be 5% of the time: 600 s after its end, which came at 70.
    assert checkpoints._pause == pytest.approx(600.0)
    assert checkpoints.due()


def test_the_environment_says_how_often(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Checkpoints("sft").due()
    monkeypatch.setenv("RATCHET_CHECKPOINT_SECONDS", "0")
    assert Checkpoints("sft").due()


def test_every_generator_continues_where_it_was() -> None:
    state = rng_state()
    first = (random.random(), float(np.random.rand()), float(torch.rand(1)))
    set_rng_state(state)
    assert (random.random(), float(np.random.rand()), float(torch.rand(1))) == first


def test_old_keys_are_pruned_and_the_current_one_is_kept(keyed: Path) -> None:
    for key in ("old1", "old2", "old3", "k1"):
        (keyed.parent / key).mkdir(parents=True)
    prune("sft", "k1", keep=2)
    assert (keyed.parent / "k1").is_dir()
    assert len(list(keyed.parent.iterdir())) == 2
