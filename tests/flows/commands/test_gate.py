import json
from pathlib import Path

import pytest

from flows.cli import main

pytest_plugins = ["tests.registry_fixtures"]


def test_gate_shows_every_rule_and_exits_by_the_verdict(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(published)]
    assert main(["gate", *where]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("yes: policy/2 (ppo) against sft")
    assert "judge_win" in shown
    assert "low above 0.5" in shown
    assert main(["gate", "v1", "--json", *where]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["promote"] is False
    assert {rule["name"] for rule in document["reasons"]} == {"judge_win", "end_rate", "length_ratio", "kl"}
    assert main(["gate", "9", *where]) == 2
    assert "there is no version '9'" in capsys.readouterr().err
