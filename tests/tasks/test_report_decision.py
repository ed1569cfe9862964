"""What the page says of champion and challenger, with a real store."""

from pathlib import Path

from tasks.gate import decide_and_promote
from tasks.report import render
from tasks.report_decision import read_decision

pytest_plugins = ["tests.registry_fixtures"]


def test_without_a_store_it_says_what_to_run_and_makes_none(tmp_path: Path) -> None:
    view = read_decision(tmp_path)
    assert "ratchet run" in view.sentence
    assert view.cards == []
    assert not (tmp_path / ".ratchet").exists()


def test_a_challenger_is_judged_and_then_its_promotion_is_told(published: Path) -> None:
    before = read_decision(published)
    assert [card["label"] for card in before.cards] == ["Champion", "Challenger", "Verdict"]
    assert before.cards[0]["value"] == "none"
    assert before.rules

    assert decide_and_promote(published).move is not None
    after = read_decision(published)
    assert [card["label"] for card in after.cards] == ["Champion", "Challenger", "Last decision"]
    assert after.cards[0]["value"] == after.cards[1]["value"]
    assert [rule["name"] for rule in after.rules] == [rule["name"] for rule in before.rules]

    page = render(published).read_text(encoding="utf-8")
    assert "<th>Rule</th>" in page
    assert f"<td>{after.rules[0]['name'].replace('_', ' ')}</td>" in page
