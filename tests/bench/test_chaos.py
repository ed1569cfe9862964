"""The bench that disturbs runs: a short version of it, and that each of its checks notices what it is there for."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bench.chaos import checks
from bench.chaos.__main__ import summary, write
from bench.chaos.arena import DEPTHS, STEPS, Arena, outputs
from bench.chaos.faults import FAULTS, NEEDS_DISK
from bench.chaos.rounds import Row, draw
from tests.tiny_project import edit

pytest_plugins = ["tests.registry_fixtures"]

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_short_version_finds_nothing_lost(tmp_path: Path) -> None:
    """Two rounds up to SFT; their blows, drawn from the seed, are a torn checkpoint, and a killed run."""
    words = ["--until", "sft", "--seed", "5", "--rounds", "2", "--faults", "tear_checkpoint", "kill_flow"]
    table = tmp_path / "table.csv"
    places = ["--work", str(tmp_path / "work"), "--table", str(table)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.chaos", *words, *places],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 rounds were well" in done.stdout
    assert len(table.read_text().splitlines()) == 3


def test_a_round_depends_on_its_seed_and_number_alone(tmp_path: Path) -> None:
    arena = Arena(tmp_path, own_disk=False)
    arena.seconds = dict.fromkeys(STEPS, 5.0)
    cases = [draw(1, number, arena) for number in range(200)]
    assert [case.blows for case in cases] == [draw(1, number, arena).blows for number in range(200)]
    assert [case.blows for case in cases] != [draw(2, number, arena).blows for number in range(200)]
    struck = {case.blows[0][0] for case in cases}
    assert struck == set(FAULTS) - set(NEEDS_DISK) - {"kill_rank"}
    assert {case.state for case in cases} == set(DEPTHS)


def test_the_table_is_read_back(tmp_path: Path) -> None:
    row = Row(
        seed=1, round=3, commit="abc", ranks=1, fault="kill_flow", state="sft", moment="ppo+1.00s", told="killed",
        runs=2, seconds=12.0, verdict="well",
    )  # fmt: skip
    write(tmp_path / "t.csv", row)
    write(tmp_path / "t.csv", Row(**{**{name: getattr(row, name) for name in row.__slots__}, "verdict": "lost"}))
    text = summary(tmp_path / "t.csv")
    assert "1 of 2 rounds were well" in text
    assert "- 1:3 kill_flow: lost" in text


@pytest.fixture
def arena(published: Path, tmp_path: Path) -> Arena:
    """An arena over a finished small project, whose reference is what lies there."""
    arena = Arena(tmp_path, own_disk=False)
    arena.root, arena.steps = published, ("sft", "judge", "ppo")
    arena.reference = outputs(published)
    return arena


def test_another_output_is_noticed(arena: Arena) -> None:
    assert list(checks._hashes(arena)) == []
    arena.reference["ppo"]["data/models/ppo"] = "0" * 32
    assert len(list(checks._hashes(arena))) == 1


def test_a_run_left_running_and_a_second_version_are_noticed(arena: Arena) -> None:
    assert list(checks._registry(arena.root, arena)) == []
    client = MlflowClient(f"sqlite:///{arena.root}/.ratchet/state/mlflow.db")
    version = client.search_model_versions("name = 'judge'")[0]
    again = client.create_model_version("judge", version.source, run_id=version.run_id, tags=version.tags)
    run = client.create_run("0", run_name="forgotten")
    found = list(checks._registry(arena.root, arena))
    assert any("forgotten is RUNNING" in line for line in found)
    assert any("has 2 versions, not 1" in line for line in found)
    client.delete_model_version("judge", again.version)
    client.set_terminated(run.info.run_id)
    assert list(checks._registry(arena.root, arena)) == []


def test_a_lock_that_is_held_is_noticed(arena: Arena) -> None:
    lock = arena.root / ".ratchet/tmp/run.lock"
    lock.touch()
    assert list(checks._locks(arena.root)) == []
    handle = os.open(lock, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert list(checks._locks(arena.root)) == [".ratchet/tmp/run.lock is held"]
    os.close(handle)


def test_a_checkpoint_left_over_is_noticed(arena: Arena) -> None:
    file = arena.root / ".ratchet/tmp/checkpoints/sft/0123/000000001-ab.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    assert any("left over" in line for line in checks._leftovers(arena.root))
    file.unlink()


def test_a_process_left_behind_is_noticed(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "GONE_SECONDS", 0.5)
    assert checks.left_behind(arena) == []
    process = subprocess.Popen(["sleep", "60"], cwd=arena.root)
    try:
        assert checks.left_behind(arena) == ["process left behind: sleep 60"]
    finally:
        process.kill()
        process.wait()


def test_a_history_that_differs_from_the_registry_is_noticed(arena: Arena) -> None:
    client = MlflowClient(f"sqlite:///{arena.root}/.ratchet/state/mlflow.db")
    client.set_registered_model_alias("policy", "champion", "1")
    history = arena.root / ".ratchet/state/history.jsonl"
    history.write_text(json.dumps({"after": "1"}) + "\n")
    assert list(checks._history(arena.root)) == []
    edit(arena.root, '"1"', '"2"', file=".ratchet/state/history.jsonl")
    assert len(list(checks._history(arena.root))) == 1
    client.delete_registered_model_alias("policy", "champion")
    history.unlink()
