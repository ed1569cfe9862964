from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.history import history_file
from tasks.mlflow_store import connect
from tasks.publish import publish
from tasks.registry import (
    ChampionMoved,
    GateRefused,
    challenger,
    champion,
    history,
    promote,
    rollback,
    version,
    versions,
)
from tests.registry_project import retrain

pytest_plugins = ["tests.registry_fixtures"]


@pytest.fixture(scope="module")
def three(published: Path) -> Path:
    """Versions 1 (sft), 2 and 3 (ppo)."""
    retrain(published, seed=21)
    assert publish(published).published == ["ppo", "evaluate"]
    return published


@pytest.fixture
def root(three: Path) -> Iterator[Path]:
    """No champion and no history."""
    yield three
    client = connect(three)
    for alias in ("champion", "previous"):
        client.delete_registered_model_alias("policy", alias)
    history_file(three).unlink(missing_ok=True)


def alias(root: Path, name: str) -> str | None:
    found = connect(root).get_registered_model("policy").aliases.get(name)
    return None if found is None else str(found)


def test_versions_are_listed_and_named(root: Path) -> None:
    assert [(entry.reference, entry.stage) for entry in versions(root)] == [
        ("policy/3", "ppo"),
        ("policy/2", "ppo"),
        ("policy/1", "sft"),
    ]
    assert champion(root) is None
    selected = challenger(root)
    assert selected is not None
    assert selected.version == "3"
    for reference in (2, "2", "v2", "policy/2", "policy/v2"):
        assert version(root, reference).version == "2"
    assert version(root, "@challenger").version == "3"
    with pytest.raises(BadInput, match="there is no version '9'; known are 1, 2, 3"):
        version(root, "9")
    assert [entry.model for entry in versions(root, "judge")] == ["judge"]


def test_promotions_and_rollbacks_move_all_aliases_and_leave_a_history(root: Path) -> None:
    first = promote(root, 1, reason="the first")
    assert (first.before, first.after, first.override) == (None, "1", False)
    assert alias(root, "previous") is None
    promote(root, "v2", reason="better")
    promote(root, "3", reason="better still")
    assert (alias(root, "champion"), alias(root, "previous")) == ("3", "2")
    assert rollback(root).after == "2"
    assert (alias(root, "champion"), alias(root, "previous")) == ("2", "1")
    assert rollback(root).after == "1"
    assert (alias(root, "champion"), alias(root, "previous")) == ("1", None)
    with pytest.raises(BadInput, match="there was no champion before this one"):
        rollback(root)
    assert rollback(root, to=3, reason="chosen").after == "3"
    assert [(move.action, move.before, move.after) for move in history(root)] == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("promote", "2", "3"),
        ("rollback", "3", "2"),
        ("rollback", "2", "1"),
        ("rollback", "1", "3"),
    ]
    kept = root / ".ratchet/state/keep"
    assert len(list(kept.iterdir())) == 3


def test_a_move_by_plain_mlflow_is_shown_and_can_be_rolled_back(root: Path) -> None:
    promote(root, 1, reason="the first")
    connect(root).set_registered_model_alias("policy", "champion", "3")
    shown = history(root)[-1]
    assert (shown.action, shown.before, shown.after) == ("moved elsewhere", "1", "3")
    assert rollback(root).after == "1"


def test_the_gate_is_obeyed_unless_overridden(root: Path) -> None:
    evidence = {"promote": False, "sentence": "too short", "champion": None}
    with pytest.raises(GateRefused, match="the gate refuses version 2: too short"):
        promote(root, 2, reason="I like it", evidence=evidence)
    assert champion(root) is None
    move = promote(root, 2, reason="I like it", evidence=evidence, override=True)
    assert move.override
    assert history(root)[-1].evidence["sentence"] == "too short"


def test_evidence_about_another_champion_does_not_count(root: Path) -> None:
    promote(root, 1, reason="the first")
    with pytest.raises(ChampionMoved, match="compared with champion none, but the champion is 1 now"):
        promote(root, 2, reason="beat nobody", evidence={"promote": True, "champion": None})
    assert alias(root, "champion") == "1"


@pytest.mark.parametrize(
    ("number", "reason", "said"),
    [(1, " ", "the reason is empty"), (8, "x", "no version '8'"), ("judge/1", "x", "is no policy")],
)
def test_bad_requests_leave_everything_as_it_was(root: Path, number: str, reason: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        promote(root, number, reason=reason)
    assert champion(root) is None
    assert history(root) == []


def test_the_champion_cannot_be_promoted_again(root: Path) -> None:
    promote(root, 1, reason="the first")
    with pytest.raises(BadInput, match="policy/1 is the champion already"):
        promote(root, 1, reason="again")
