"""`ratchet denoise`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from rlhf.outputs import read_jsonl, write_jsonl
from tasks.yaml_edit import set_values
from tests.noisy_pairs import pair_record, write_noisy_pairs

ROOT = Path(__file__).parents[3]
SMALL = {
    "reward.learning_rate": 0.01, "reward.batch_size": 8, "reward.epochs": 3.0, "reward.swap_weight": 0.0,
    "reward.max_tokens": 64,
}  # fmt: skip

# pygtrie, inside DVC, announces a change of its own to whoever uses it.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with noisy pairs; its raw files are there by name."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(ROOT / "dvc.yaml", root)
    (root / "params.yaml").write_text(set_values((ROOT / "params.yaml").read_text(), SMALL, file="params.yaml"))
    write_noisy_pairs(root)
    for name in ("pairs", "prompts"):
        write_jsonl(root / f"data/raw/support_desk/{name}.jsonl", [pair_record(1, wrong=False)])
    return root


def test_the_list_and_its_measures(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["denoise", "--root", str(root), "--folds", "2", "--json"]) == 0
    captured = capsys.readouterr()
    assert "LOAD REPORT" not in captured.err
    document = json.loads(captured.out)
    assert document["truth"]["precision"] == 1.0
    assert document["truth"]["base_rate"] == 0.125
    assert "`ratchet denoise --write NAME`" in document["next"]
    listed = list(read_jsonl(root / "data/reports/denoise/suspects.jsonl"))
    assert listed[0]["annotator"] == "hasty"
    summary = json.loads((root / "data/reports/denoise/summary.json").read_text())
    assert summary["flagged"] == document["flagged"] == 6
    assert not (root / "data/raw/clean.jsonl").exists()


def test_the_cleaned_data_stand_in_for_their_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    (root / ".dvc" / "config").write_text(f"[core]\n    site_cache_dir = {root.parent / 'site'}\n")
    words = ["--folds", "2", "--out", str(root.parent / "out"), "--write", "clean", "--action", "flip"]
    assert main(["denoise", "--root", str(root), *words]) == 0
    out = capsys.readouterr().out
    assert "flagged as probably wrong" in out
    assert "added: data/raw/clean.jsonl" in out
    assert "set `files: [support_desk/prompts.jsonl, clean.jsonl]` under `validate:`" in out
    assert (root.parent / "out/suspects.jsonl").is_file()
    rows = list(read_jsonl(root / "data/raw/clean.jsonl"))
    assert len(rows) == 49 + 3
    assert sum("denoised" in row["meta"] for row in rows) == 6
    assert not (root / ".ratchet/tmp/denoise").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--folds", "1"], "--folds of at least 2"),
        (["--folds", "100"], "folds is 100 with 48 prompts"),
        (["--threads", "0"], "--threads of at least 1"),
        (["--epochs", "0"], "epochs is 0"),
        (["--max-pairs", "0"], "max_pairs is 0"),
        (["--write", "Not A Name"], "is not a usable name"),
        (["--write", "x", "--max-pairs", "5"], "leave --max-pairs out"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    root: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(["denoise", "--root", str(root), *words]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err


def test_what_has_to_be_there_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "data/models/sft")
    assert main(["denoise", "--root", str(root)]) == 2
    assert "`ratchet run --until sft` makes it" in capsys.readouterr().err


def test_models_that_know_nothing_accuse_nobody(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    untrained = ["denoise", "--root", str(root), "--folds", "2", "--epochs", "0.01"]
    settings = set_values((root / "params.yaml").read_text(), {"reward.learning_rate": 1e-9}, file="params.yaml")
    (root / "params.yaml").write_text(settings)
    assert main([*untrained, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["agreement"] < 0.55
    assert "is not to be acted on" in document["next"]
    assert main([*untrained, "--write", "clean"]) == 2
    assert "data/raw/clean was not written" in capsys.readouterr().err
    assert not list((root / "data/raw").glob("clean*"))
