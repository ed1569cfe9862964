import json
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.gate import verdict_lines
from tasks.gate_rules import Slice, Verdict

pytest_plugins = ["tests.registry_fixtures"]


def test_gate_shows_every_rule_and_exits_by_the_verdict(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--root", str(published)]
    assert main(["gate", *where]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("yes: policy/2 (ppo) against sft")
    assert "judge_win" in shown
    assert "low above 0.5" in shown
    assert "judge_win: 96 won, 0 lost, 0 tied; low end 0.96" in shown
    assert "look 1 at this place: an equal challenger passes with a chance of at most 3%" in shown
    assert main(["gate", "v1", "--json", *where]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["promote"] is False
    assert {rule["name"] for rule in document["reasons"]} == {
        "judge_win", "end_rate", "length_ratio", "kl", "end_rate_change", "repetition_change",
    }  # fmt: skip
    assert document["look"] == 2
    assert main(["gate", "9", *where]) == 2
    assert "there is no version '9'" in capsys.readouterr().err


def test_an_undecided_verdict_says_so_first_and_shows_slices() -> None:
    one = Slice(field="intent", value="late", prompts=30, rate=0.4, low=0.2, high=0.6, ok=True)
    verdict = Verdict(
        promote=False, reasons=(), sentence="undecided: policy/3 against policy/2", challenger="3", champion="2",
        opponent="champion policy/2", prompts=30, mode="advise", outcome="undecided", slices=(one,), look=4,
        error=0.0019,
    )  # fmt: skip
    lines = verdict_lines(verdict)
    assert lines[0] == "undecided: policy/3 against policy/2"
    assert "intent late 30 0.4 0.200 to 0.600 ok" in " ".join("\n".join(lines).split())
    assert "look 4 at this champion: an equal challenger passes with a chance of at most 0.19%" in lines
    assert "`ratchet promote 3` would do it anyway" in lines[-1]
