import json
from pathlib import Path

import pytest

from flows.cli import main
from tasks.registry import champion

pytest_plugins = ["tests.registry_fixtures"]


def test_promote_asks_the_gate(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(published)]
    assert main(["promote", "1", "--reason", "I like it", *where]) == 1
    refused = capsys.readouterr().err
    assert refused.startswith("error: promote: the gate refuses version 1: ")
    assert refused.count("judge_win") == 1  # said once
    assert champion(published) is None
    assert main(["promote", "1", "--reason", "I like it", "--override", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["override"] is True
    assert main(["promote", "1", "--reason", "again", "--override", *where]) == 2
    assert "policy/1 is the champion already" in capsys.readouterr().err
    assert main(["promote", "2", *where]) == 2
