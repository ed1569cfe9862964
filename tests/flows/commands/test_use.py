import json
import shutil
from pathlib import Path

import pytest

from flows.cli import main
from rlhf.config import read_params

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings of this project, at their defaults, with a profile of one change."""
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / "profiles" / "default.yaml", tmp_path / "params.yaml")
    (tmp_path / "profiles" / "twin.yaml").write_text("seed: 2\nppo:\n  updates: 7\n")
    monkeypatch.setenv("RATCHET_ROOT", str(tmp_path))
    return tmp_path


def test_a_profile_is_shown_and_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "params.yaml").read_text()
    assert main(["use", "twin"]) == 0
    out = capsys.readouterr().out
    assert "ppo.updates" in out
    assert "2 change(s) written to params.yaml" in out
    assert "`ratchet plan`" in out
    after = (project / "params.yaml").read_text()
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert [line.split("#")[0].strip() for line in changed] == ["seed: 2", "updates: 7"]


def test_a_dry_run_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "params.yaml").read_bytes()
    assert main(["use", "twin", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "ppo.updates" in captured.out
    assert "nothing was written" in captured.err
    assert (project / "params.yaml").read_bytes() == before


def test_back_and_default_restore(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "params.yaml").read_bytes()
    assert main(["use", "--back"]) == 2
    assert main(["use", "twin"]) == 0
    assert main(["use", "--back"]) == 0
    assert (project / "params.yaml").read_bytes() == before
    assert main(["use", "twin"]) == 0
    assert main(["use", "default"]) == 0
    assert (project / "params.yaml").read_bytes() == before
    capsys.readouterr()
    assert main(["use", "default"]) == 0
    assert "nothing to change" in capsys.readouterr().out


def test_the_document(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "profiles" / "mine.yaml").write_text("validate:\n  files: [mine.jsonl]\n")
    assert main(["use", "mine", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["written"] is True
    assert document["changes"][0]["key"] == "validate.files"
    assert document["changes"][0]["new"] == ["mine.jsonl"]
    assert "validate" in document["stages"]
    assert document["missing"][0].startswith("data/raw/mine.jsonl; bring it with `ratchet ingest")


def test_a_method_is_laid_over_a_profile(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["use", "tiny", "algorithms/grpo"]) == 0
    assert "stands on the defaults" not in capsys.readouterr().out
    ppo = read_params(project / "params.yaml")["ppo"]
    assert (ppo["updates"], ppo["rollouts"], ppo["group_size"], ppo["kl_place"]) == (4, 16, 8, "loss")
    assert main(["use", "algorithms/grpo"]) == 0
    assert "`ratchet use PROFILE algorithms/grpo` lays it over another profile" in capsys.readouterr().out
    assert read_params(project / "params.yaml")["ppo"]["updates"] == 80


@pytest.mark.parametrize("words", [[], ["defualt"], ["twin", "--back"], ["bad"], ["twin", "bad"]])
def test_a_refusal_leaves_the_file_alone(words: list[str], project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "profiles" / "bad.yaml").write_text("ppo:\n  updates: many\n")
    before = (project / "params.yaml").read_bytes()
    assert main(["use", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (project / "params.yaml").read_bytes() == before
