import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main

ROOT = Path(__file__).parents[3]

# pygtrie, inside DVC, announces a change of its own to whoever uses it.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings of this project, and a profile that names the data `mine`."""
    root = tmp_path / "project"
    (root / "profiles").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, root / name)
    (root / "profiles" / "default.yaml").write_text("seed: 1\n")
    (root / "profiles" / "ours.yaml").write_text("validate:\n  files: [mine.jsonl]\nsft:\n  base_model: small\n")
    monkeypatch.setenv("RATCHET_ROOT", str(root))
    return root


@pytest.fixture
def repository(folder: Path) -> Path:
    """The same, under git and DVC."""
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True)
    (folder / ".dvc" / "config").write_text(f"[core]\n    site_cache_dir = {folder.parent / 'site'}\n")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "What is\n two and two?", "chosen": "Four.", "rejected": "Five."},
        {"prompt": "And three?", "chosen": "Seven.", "rejected": None},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_data_come_in_and_the_next_step_is_named(
    repository: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", str(pairs), "--as", "mine"]) == 0
    out = capsys.readouterr().out
    assert "added: data/raw/mine.jsonl; commit data/raw/mine.jsonl.dvc with git" in out
    assert "preference, because " in out
    assert "1 of kind pair" in out
    assert "1 row(s), the first pairs.jsonl:2 rejected" in out
    assert "What is two and two?" in out
    assert "next: `ratchet use ours`, or set `files: [mine.jsonl]` under `validate:` in params.yaml" in out
    assert (repository / "data" / "raw" / "mine.jsonl").read_bytes() == pairs.read_bytes()
    assert (repository / "data" / "raw" / "mine.jsonl.dvc").is_file()


def test_the_document(repository: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", str(pairs), "--as", "other", "--format", "preference", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["data"]["name"] == "other.jsonl"
    assert document["data"]["rows"] == {"pair": 1}
    assert document["next"].startswith("set `files: [other.jsonl]`")


def test_what_params_name_already_needs_only_a_run(
    repository: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = repository / "params.yaml"
    params.write_text(params.read_text().replace("files: [support_desk/]", "files: [mine.jsonl]"))
    assert main(["ingest", str(pairs), "--as", "mine"]) == 0
    assert "next: `ratchet run`" in capsys.readouterr().out


@pytest.mark.shared
def test_a_base_model_comes_in(repository: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ingest", "--model", str(shared / "models" / "stories260K"), "--as", "small"]) == 0
    out = capsys.readouterr().out
    assert "added: data/base/small; commit data/base/small.dvc with git" in out
    assert "LlamaForCausalLM" in out
    assert "next: `ratchet use ours`, or set `base_model: small` under `sft:`" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name data files, or a base model"),
        (["{pairs}", "--model", "x", "--as", "y"], "one of the two"),
        (["--model", "x"], "--model needs --as NAME"),
        (["absent.jsonl"], "absent.jsonl: no such file"),
        (["{pairs}", "--format", "xml"], "unknown format 'xml'"),
        (["{pairs}", "--as", "Not A Name"], "is not a usable name"),
    ],
)
def test_what_cannot_come_in_is_refused(
    words: list[str], sentence: str, folder: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", *(word.format(pairs=pairs) for word in words)]) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / "data").exists()
