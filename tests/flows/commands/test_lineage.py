import json
from pathlib import Path

import pytest

from flows.cli import main

pytest_plugins = ["tests.registry_fixtures"]


def test_lineage_backwards_and_forwards(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(published)]
    assert main(["lineage", "policy/2", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("policy/2 @challenger: ppo ")
    assert any(line.startswith("    sft = policy/1: data/models/sft ") for line in lines)
    assert any(line.startswith("      data/validated/demonstrations ") for line in lines)
    assert main(["lineage", "policy/2", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["parents"] == {"sft": "policy/1"}
    assert main(["lineage", "data/validated/judge_pairs/train.jsonl", *where]) == 0
    out = capsys.readouterr().out
    assert "judge/1" in out
    assert "policy/1" not in out
    assert main(["lineage", "data/validated/judge_pairs", "--json", *where]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [use["version"] for use in document["versions"]] == ["judge/1"]
    assert main(["lineage", "data/raw/none.jsonl", *where]) == 2
    assert "no version was made from one" in capsys.readouterr().err
