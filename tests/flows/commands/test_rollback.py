from pathlib import Path

import pytest

from flows.cli import main
from tasks.registry import promote

pytest_plugins = ["tests.registry_fixtures"]


def test_rollback_returns_to_the_champion_before(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(published)]
    assert main(["rollback", *where]) == 2
    assert "there was no champion before this one" in capsys.readouterr().err
    promote(published, 1, reason="first")
    promote(published, 2, reason="second")
    assert main(["rollback", *where]) == 0
    assert capsys.readouterr().out == "policy/1 is champion (before: 2)\n"
    assert main(["rollback", "--to", "v2", "--reason", " ", *where]) == 2
    assert "the reason is empty" in capsys.readouterr().err
    assert main(["rollback", "--to", "v2", *where]) == 0
    assert capsys.readouterr().out == "policy/2 is champion (before: 1)\n"
