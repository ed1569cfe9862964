"""`ratchet collect`."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from rlhf.data.records import canonical_json
from rlhf.outputs import read_jsonl
from tests.rlhf.evaluation.completions_server import Fault, serving
from tests.talking_models import write_talking_models

ROOT = Path(__file__).parents[3]
SECRET = "top-secret-word"

# pygtrie, inside DVC, announces a change of its own to whoever uses it.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a policy, its judges and prompts, under git and DVC."""
    root = tmp_path_factory.mktemp("collect") / "project"
    root.mkdir()
    for name in ("dvc.yaml", "params.yaml", "mlflow/registry.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    write_talking_models(root)
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    (root / ".dvc" / "config").write_text(f"[core]\n    site_cache_dir = {root.parent / 'site'}\n")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "project")


def collect(root: Path, *words: str) -> int:
    small = ["--prompts", "5", "--answers", "3", "--max-new-tokens", "12", "--pairs", "all"]
    return main(["collect", "--root", str(root), *small, *words])


def test_pairs_become_tracked_raw_data_of_training_prompts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert collect(root, "sft", "--judge", "rubric", "--as", "mine") == 0
    captured = capsys.readouterr()
    assert "added: data/raw/mine.jsonl; commit data/raw/mine.jsonl.dvc with git" in captured.out
    assert "next: set `files: [support_desk/, mine.jsonl]` under `validate:`" in captured.out
    assert "THE LABELS ARE THE TRUTH" in captured.err
    assert (root / "data/raw/mine.jsonl.dvc").is_file()
    rows = list(read_jsonl(root / "data/raw/mine.jsonl"))
    known = {
        split: {canonical_json(row["prompt"]) for row in read_jsonl(root / f"data/validated/prompts/{split}.jsonl")}
        for split in ("train", "dev", "test")
    }
    asked = {canonical_json(row["prompt"]) for row in rows}
    assert asked <= known["train"]
    assert not asked & (known["dev"] | known["test"])
    assert rows[0]["collected"]["policy"] == "sft"
    assert len(rows[0]["collected"]["policy_sha256"]) == 64
    assert not list((root / ".ratchet/tmp/collect").iterdir())  # nothing is left over

    # The same command again gives the same bytes, so there is nothing new to track.
    assert collect(root, "sft", "--judge", "rubric", "--as", "mine", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "unchanged"
    assert document["counts"]["pairs"] == len(rows)
    assert document["gold_accuracy"] == 1.0


def test_an_endpoint_is_taken_from_the_environment_and_continued(
    root: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("RATCHET_JUDGE_MODEL", "judge-1")
    monkeypatch.setenv("RATCHET_JUDGE_KEY", SECRET)
    words = ["sft", "--judge", "endpoint", "--as", "asked", "--parallel", "1", "--debug"]
    with serving(lambda a, b, n: "Verdict: A" if n <= 3 else Fault(401, f"bad {SECRET}"), key=SECRET) as server:
        monkeypatch.setenv("RATCHET_JUDGE_URL", server.url)
        assert collect(root, *words) == 2
    interrupted = capsys.readouterr()
    assert "refuses (status 401: bad (key))" in interrupted.err
    assert not (root / "data/raw/asked.jsonl").exists()
    with serving(lambda a, b, n: f"Verdict: {'A' if len(a) > len(b) else 'B'}", key=SECRET) as server:
        monkeypatch.setenv("RATCHET_JUDGE_URL", server.url)
        assert collect(root, *words, "--json") == 0
        asked_now = len(server.requests)
    captured = capsys.readouterr()
    counts = json.loads(captured.out)["counts"]
    assert counts["kept"] == 3
    assert counts["questions"] == asked_now + 3
    assert counts["prompt_tokens"] == 10 * counts["questions"]
    row = next(read_jsonl(root / "data/raw/asked.jsonl"))
    assert row["annotator"] == "judge-1"
    assert row["collected"]["judge"]["model"] == "judge-1"
    said = interrupted.out + interrupted.err + captured.out + captured.err + caplog.text
    assert SECRET not in said
    files = [path for path in root.rglob("*") if path.is_file()]
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_a_judge_that_the_gate_trusts_comes_with_a_warning(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / ".dvc")  # so that the end fails: what came before is what this test is about
    assert collect(root, "sft", "--as", "mine") == 1
    captured = capsys.readouterr()
    assert "no longer independent" in captured.err
    assert "`dvc add data/raw/mine.jsonl` failed" in captured.err
    assert len(list((root / ".ratchet/tmp/collect").glob("*/answers-*.jsonl"))) == 3  # kept for the next try


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing", "--as", "x"], "'nothing' is no model"),
        (["sft"], "--as"),
        (["sft", "--as", "Not A Name"], "is not a usable name"),
        (["sft", "--as", "support_desk"], "the name of the generated data"),
        (["sft", "--as", "x", "--answers", "1"], "answers is 1, wanted 2 or more"),
        (["sft", "--as", "x", "--temperature", "0"], "temperature is 0.0"),
        (["sft", "--as", "x", "--threads", "0"], "--threads is 0"),
        (["sft", "--as", "x", "--judge", "endpoint"], "RATCHET_JUDGE_URL is not set"),
        (["sft", "--as", "x", "--guideline", "file"], "--guideline is for --judge endpoint"),
        (["sft", "--as", "x", "--judge", "endpoint", "--guideline", "absent"], "absent: cannot be read"),
        (["sft", "--as", "x", "--judge", "rubric", "--max-new-tokens", "96"], "no training prompt leaves 96 tokens"),
        (["sft", "--as", "x", "--judge", "rubric", "--max-new-tokens", "1"], "no pair was found"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    template: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert collect(template, *words) in (1, 2)
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert "Traceback" not in captured.err
    assert not (template / "data/raw").exists()


def test_a_judge_that_is_not_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "data/models/judge")
    assert collect(root, "sft", "--as", "x") == 2
    assert "`ratchet run --until judge` trains one" in capsys.readouterr().err
