"""A disk that fills up costs nothing but time: one sentence with the path, and the same bytes once there is room."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.rlhf.interrupted_stage import ROOT, Trial


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    trial = Trial(tmp_path_factory.mktemp("whole") / "stage", "sft")
    assert trial.run().code == 0
    return trial


@cache
def can_mount() -> bool:
    """Whether a disk can be made that only the test's processes see."""
    words = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /tmp"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="mounting is not allowed; the test below needs no disk of its own")
def test_a_full_disk_ends_the_stage_with_one_sentence_and_costs_nothing(whole: Trial, tmp_path: Path) -> None:
    words = ["unshare", "--mount", sys.executable, "-m", "tests.rlhf.full_disk", str(tmp_path / "disk"), "result.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
    last = found.pop("last")
    said = {name: one["said"] for name, one in found.items()}
    assert {name: one["code"] for name, one in found.items()} == dict.fromkeys(found, 1), said
    for name, place in {
        "live rows": "cannot write .ratchet/tmp/live/sft/", "checkpoint": ".ratchet/tmp/checkpoints/sft/",
        "model": "cannot write out/model",
    }.items():  # fmt: skip
        sentence = next(line for line in said[name].splitlines() if line.startswith("sft: ") and "free space" in line)
        assert place in sentence, sentence
        assert "No space left on device" in sentence
        assert "Traceback" not in said[name]
    # What saves time only is left out, and the stage goes on as far as it can.
    assert "token ids are held in memory" in said["caches"]
    # The checkpoint before the one that failed is there, and the next attempt goes on from it.
    assert found["checkpoint"]["after"]
    assert "resuming from the checkpoint of step 2" in said["caches"]
    # What was written before stays until the new one is whole.
    assert "out/model/old.txt" in found["model"]["written"]
    assert last["code"] == 0, last["said"]
    assert last["written"] == whole.written()
    assert last["live"] == whole.live()


@pytest.mark.parametrize(
    ("every", "limit", "sentence"),
    [
        ("0", 60_000, "the checkpoint of step 1 cannot be written (File too large); the one before it is kept"),
        ("1e9", 30_000, "cannot write out/model"),
    ],
)
def test_a_file_that_may_not_grow_is_the_same(
    whole: Trial, tmp_path: Path, every: str, limit: int, sentence: str
) -> None:
    trial = Trial(tmp_path / "stage", "sft")
    ended = trial.run(every=every, limit=limit)
    assert ended.code == 1
    assert sentence in ended.said.splitlines()[-1]
    assert "Traceback" not in ended.said
    assert set(trial.written()) <= {"out/samples.jsonl"}  # nothing torn
    assert trial.checkpoints() == []
    if not can_mount():  # else the test above has shown it
        assert trial.run().code == 0
        assert trial.written() == whole.written()
