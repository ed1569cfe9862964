"""`ratchet report`."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from tests.tasks.report_project import write_project


def test_it_says_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_project(tmp_path / "project")
    assert main(["report", "--root", str(root)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == root / ".ratchet/tmp/report/index.html"
    assert "PPO was chosen" in path.read_text(encoding="utf-8")


def test_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert main(["report", "--root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / ".ratchet/tmp/report/index.html")}


def test_a_torn_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_project(tmp_path / "project")
    (root / "data/metrics/validate.json").write_text("{")
    assert main(["report", "--root", str(root)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "validate.json: not JSON" in captured.err
