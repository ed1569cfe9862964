import json
from pathlib import Path

import pytest

from flows.cli import main
from rlhf.errors import BadInput
from tasks.approval import approve, pending
from tasks.gate import decide_and_promote, judge_challenger
from tasks.mlflow_store import connect
from tasks.registry import GateRefused, challenger, champion, rollback, version

pytest_plugins = ["tests.registry_fixtures"]


def test_a_good_challenger_waits_for_a_person(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = published / "mlflow/registry.yaml"
    settings.write_text(settings.read_text().replace("approval: false", "approval: true"))
    # As a run leaves it whose challenger nobody has decided about.
    connect(published).set_model_version_tag("policy", "1", "ratchet.decision", "pending")
    decision = decide_and_promote(published)
    assert decision.move is None
    assert decision.verdict is not None
    assert decision.verdict.promote
    assert "a person decides, `ratchet promote 2 --reason ...` makes it champion" in decision.sentence
    assert champion(published) is None
    waiting = challenger(published)
    assert waiting is not None
    assert (waiting.decision, version(published, 1).decision) == ("pending", "superseded")
    assert "every rule" in waiting.tags["ratchet.verdict"]
    found = pending(published, waiting.reference, waiting.decision)
    assert found is not None
    assert found.sentence == decision.verdict.sentence
    kept = json.loads((published / ".ratchet/state/decision.json").read_text())
    assert kept["verdict"]["challenger"] == "2"

    assert main(["status", "--json", "--root", str(published)]) == 0
    assert json.loads(capsys.readouterr().out)["pending"]["version"] == "policy/2"
    assert main(["status", "--root", str(published)]) == 0
    assert "waits for you: `ratchet promote policy/2 --reason ...`: policy/2 (ppo)" in capsys.readouterr().out

    heard: list[str] = []
    assert approve(published, "@challenger", reason="I read the samples", say=heard.append).after == "2"
    assert heard == [found.sentence]
    assert version(published, 2).decision == "promoted"
    assert main(["status", "--json", "--root", str(published)]) == 0
    assert json.loads(capsys.readouterr().out)["pending"] is None
    rollback(published, to=1, reason="second thoughts")
    assert version(published, 2).decision == "rolled back"


def test_what_another_machine_decided_is_pending_here_too(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    found = pending(tmp_path, "policy/7", "pending")
    assert found is not None
    assert found.sentence == "`ratchet gate policy/7` says what speaks for it"
    assert pending(tmp_path, "policy/7", "promoted") is None
    assert pending(tmp_path, None, "") is None


def test_no_without_a_reason_or_against_the_gate(published: Path) -> None:
    connect(published).set_registered_model_alias("policy", "champion", "2")
    with pytest.raises(BadInput, match="the reason is empty"):
        approve(published, "1", reason=" ")
    with pytest.raises(BadInput, match="judge/1 is no policy"):  # and policy/1 is not meant
        approve(published, "judge/1", reason="x", override=True)
    with pytest.raises(BadInput, match="gate: judge/1 is no policy"):
        judge_challenger(published, "judge/1")
    with pytest.raises(BadInput, match="policy/2 is the champion already"):
        approve(published, "@challenger", reason="again", override=True)
    heard: list[str] = []
    with pytest.raises(GateRefused, match="the gate refuses version 1"):
        approve(published, "1", reason="I like it", say=heard.append)
    assert heard == []  # the refusal says it
    holder = champion(published)
    assert holder is not None
    assert holder.version == "2"
