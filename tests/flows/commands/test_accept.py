import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main

DVC = """\
stages:
  one:
    cmd: cat rlhf/one.py data/in > data/one
    deps: [rlhf/one.py, data/in]
    params: [rate]
    outs: [data/one]
  two:
    cmd: cat rlhf/one.py data/one > data/two
    deps: [rlhf/one.py, data/one]
    outs: [data/two]
"""

# pygtrie, inside DVC, announces a change of its own to whoever uses it.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages that have run."""
    root = tmp_path_factory.mktemp("finished")
    files = {"dvc.yaml": DVC, "params.yaml": "rate: 1\n", "rlhf/one.py": "x = 1\n", "data/in": "input\n"}
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    dvc(root, "init", "-q", "--no-scm")
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    site_cache_dir = .dvc/site\n")
    dvc(root, "repro", "-q")
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for one test."""
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    monkeypatch.setenv("RATCHET_ROOT", str(root))
    return root


def dvc(project: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=project, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_comment_is_accepted_without_a_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: (project / "data" / name).read_text() for name in ("one", "two")}
    (project / "rlhf" / "one.py").write_text("x = 1  # the first\n")
    assert main(["accept", "two", "one", "--reason", "a  comment", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["accepted"]
    assert [(row["stage"], row["reason"]) for row in rows] == [("one", "a comment"), ("two", "a comment")]
    assert rows[0]["files"][0]["path"] == "rlhf/one.py"
    assert dvc(project, "status", "--json").strip() == "{}"
    assert {name: (project / "data" / name).read_text() for name in before} == before
    kept = (project / ".ratchet" / "state" / "accepted.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in kept] == ["one", "two"]


def test_nothing_to_accept(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accept", "one", "--reason", "x"]) == 0
    assert capsys.readouterr().out == "one: up to date, nothing to accept\n"


def test_a_change_of_data_parameters_or_outputs_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = (project / "dvc.lock").read_bytes()
    (project / "rlhf" / "one.py").write_text("x = 2\n")
    for name, word in (
        ("data/in", "data/in changed"),
        ("params.yaml", "rate changed"),
        ("data/one", "output data/one"),
    ):
        old = (project / name).read_text()
        (project / name).write_text("rate: 2\n")
        assert main(["accept", "one", "--reason", "x"]) == 2
        message = capsys.readouterr().err
        assert word in message
        assert "ratchet run --until one" in message
        (project / name).write_text(old)
    assert (project / "dvc.lock").read_bytes() == lock


def test_a_stage_behind_a_stale_one_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "rlhf" / "one.py").write_text("x = 2\n")
    assert main(["accept", "two", "--reason", "x"]) == 2
    assert "it reads data/one of one, which is stale too" in capsys.readouterr().err


def test_a_reason_and_a_known_stage_are_needed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accept", "one"]) == 2
    assert main(["accept", "one", "--reason", " "]) == 2
    assert main(["accept", "three", "--reason", "x"]) == 2
    assert "no stage 'three'" in capsys.readouterr().err
