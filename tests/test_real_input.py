"""Real preference data and a real base model, brought in by the commands that a user types; reduced in size."""

import gzip
import shutil
from pathlib import Path

import pytest

from tests.clone import clone_project, ratchet

SMALL = """
from: {profile}
sft: {{epochs: 0.2, samples: 2}}
reward: {{epochs: 0.2, normalise_samples: 8}}
judge: {{epochs: 0.2, normalise_samples: 8}}
ppo: {{updates: 2, rollouts: 4, minibatch: 4, warmup_updates: 1, sample_every: 2, max_new_tokens: 16}}
dpo: {{epochs: 0.1, max_new_tokens: 16}}
validate: {{max_demonstrations: 120, max_pairs: 80, max_held_out: 24}}
evaluate: {{dev_prompts: 4, test_prompts: 6, held_out_records: 8, best_of: [1, 2], best_of_prompts: 2, resamples: 100,
  max_new_tokens: 16}}
"""


def go(root: Path, profile: str) -> dict[str, object]:
    small = root / "small.yaml"
    small.write_text(SMALL.format(profile=profile))
    ratchet(root, "use", str(small), "--yes")
    registry = root / "mlflow/registry.yaml"
    registry.write_text(registry.read_text().replace("first_champion: beats_sft", "first_champion: any"))
    run = ratchet(root, "run")
    assert all(stage["status"] == "run" for stage in run["stages"])
    return ratchet(root, "status")


@pytest.mark.shared
def test_instructions_and_a_real_base_model_go_the_whole_path(tmp_path: Path, project: Path, shared: Path) -> None:
    root = clone_project(project, tmp_path / "project")
    folder = shared / "data/instruction_pref"
    pairs = ratchet(root, "ingest", str(folder / "pairs.jsonl"), "--as", "instruction_pref")
    assert pairs["data"]["format"] == "preference"
    ratchet(root, "ingest", str(folder / "sft.jsonl"), "--as", "instruction_sft")
    ratchet(root, "ingest", "--model", str(shared / "models/stories260K"), "--as", "stories260k")
    status = go(root, "stories260k-instruct")
    assert status["champion"] is not None
    quarantine = (root / "data/quarantine/rows.jsonl").read_text()
    assert quarantine.count("chosen equals rejected") == 6


@pytest.mark.shared
def test_whole_conversations_are_split_into_turns(tmp_path: Path, project: Path, shared: Path) -> None:
    root = clone_project(project, tmp_path / "project")
    # The first 400 of 2,312 pairs: enough to meet every branch, quick enough for every run of the tests.
    part = tmp_path / "part.jsonl.gz"
    with gzip.open(shared / "data/hh_harmless/test.jsonl.gz", "rb") as source, gzip.open(part, "wb") as target:
        target.writelines(line for _, line in zip(range(400), source, strict=False))
    pairs = ratchet(root, "ingest", str(part), "--as", "hh")
    assert pairs["data"]["format"] == "hh"
    shutil.copytree(shared / "models/stories260K", tmp_path / "base")
    ratchet(root, "ingest", "--model", str(tmp_path / "base"), "--as", "stories260k")
    ratchet(root, "use", "hh-stories", "--yes")
    ratchet(root, "run", "--until", "validate")
    assert (root / "data/validated/pairs/train.jsonl").stat().st_size > 0
