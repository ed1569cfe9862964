import json
from pathlib import Path

import pytest

from flows.cli import main
from tasks.mlflow_store import connect
from tasks.registry import promote

pytest_plugins = ["tests.registry_fixtures"]


def test_history_tells_every_move(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(published)]
    assert main(["history", *where]) == 0
    assert capsys.readouterr().out == "no version has been champion yet\n"
    promote(published, 1, reason="the first")
    connect(published).set_registered_model_alias("policy", "champion", "2")
    assert main(["history", *where]) == 0
    shown = capsys.readouterr().out
    assert "- -> 1" in shown
    assert "moved elsewhere" in shown
    assert main(["history", "--json", *where]) == 0
    assert [move["after"] for move in json.loads(capsys.readouterr().out)] == ["1", "2"]
