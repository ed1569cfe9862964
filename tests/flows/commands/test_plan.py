import json
from pathlib import Path

import pytest

from flows.cli import main
from tests.tiny_project import edit


def test_a_plan_for_a_person(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(finished_project, "word: two", "word: TWO")
    assert main(["plan", "--root", str(finished_project)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first  cached"
    assert "left   run" in lines
    assert lines[2].strip() == "parameter left.word changed ('two' -> 'TWO')"
    assert lines[-1] == "4 stages: 1 run, 1 maybe, 2 cached"


def test_a_plan_for_a_program(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--until", "right", "--force", "right", "--root", str(finished_project)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "stages": [
            {"name": "first", "action": "cached", "reasons": [], "last_run_seconds": None},
            {
                "name": "right",
                "action": "run",
                "reasons": [
                    {"kind": "forced", "name": "right", "old": None, "new": None, "sentence": "asked for by --force"}
                ],
                "last_run_seconds": None,
            },
        ],
        "advice": [],
    }


def test_an_unknown_stage(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--until", "nothing", "--root", str(finished_project)]) == 2
    assert "no stage 'nothing'; it has first, left, right, last" in capsys.readouterr().err


def test_settings_outside_what_is_recommended_are_named(
    finished_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (finished_project / "params.yaml").open("a") as stream:
        stream.write("ppo: {gamma: 0.5}\n")
    assert main(["plan", "--json", "--root", str(finished_project)]) == 0
    said = capsys.readouterr()
    (advice,) = json.loads(said.out)["advice"]
    assert (advice["key"], advice["value"], advice["low"], advice["high"]) == ("ppo.gamma", 0.5, 0.99, 1.0)
    assert said.err == f"warning: {advice['sentence']}\n"
