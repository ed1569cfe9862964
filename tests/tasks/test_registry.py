import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.dvc_store import dvc_places, object_path
from tasks.history import begin_move, begun_move, history_file
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
from tasks.settings import state_dir
from tasks.weights import resolve_weights
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
    for tag in client.get_registered_model("policy").tags:
        client.delete_registered_model_tag("policy", tag)
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


def test_an_alias_set_back_by_hand_is_a_rollback_and_a_deleted_one_is_restored(root: Path) -> None:
    client = connect(root)
    for number in (1, 2, 3):
        promote(root, number, reason="better")
    client.set_registered_model_alias("policy", "champion", "2")
    assert rollback(root).after == "1"  # not 3, which somebody has just left
    promote(root, 3, reason="again")
    client.delete_registered_model_alias("policy", "champion")
    shown = history(root)[-1]
    assert (shown.action, shown.before, shown.after) == ("moved elsewhere", "3", None)
    assert champion(root) is None
    assert rollback(root).after == "3"
    assert alias(root, "previous") == "1"
    assert {key for key in client.get_registered_model("policy").tags if key.startswith("ratchet.move.")} == {
        f"ratchet.move.{number}" for number in range(1, 7)
    }


def test_history_survives_the_loss_of_its_file_and_a_kill_between_alias_and_record(root: Path) -> None:
    promote(root, 1, reason="the first", evidence={"promote": True, "champion": None, "reasons": ["long"]})
    second = promote(root, 2, reason="better")
    assert history(root)[0].evidence["reasons"] == ["long"]
    history_file(root).unlink()
    assert [(move.after, move.reason) for move in history(root)] == [("1", "the first"), ("2", "better")]
    assert "reasons" not in history(root)[0].evidence
    # As a process leaves it that is killed after it has set the alias: a move begun, and no record of it.
    killed = replace(second, before="2", after="3", reason="killed", id="k", number=3)
    begin_move(root, killed)
    assert [move.after for move in history(root)] == ["1", "2"]  # the alias has not moved yet
    connect(root).set_registered_model_alias("policy", "champion", "3")
    assert history(root)[-1].reason == "killed"
    assert rollback(root).after == "2"
    assert [(move.action, move.after) for move in history(root)][-2:] == [("promote", "3"), ("rollback", "2")]
    assert begun_move(root) is None


def test_a_champion_whose_weights_are_gone_is_said_to_be_so_and_can_be_left(root: Path) -> None:
    promote(root, 1, reason="the first")
    promote(root, 2, reason="better")
    kept = state_dir(root) / "keep" / version(root, 2).output_md5.removesuffix(".dir")
    aside = root / "aside"
    shutil.move(kept, aside / "keep")
    lost = object_path(dvc_places(root).cache, version(root, 2).output_md5)
    weights = [object_path(dvc_places(root).cache, md5) for md5 in _files(root, "2").values()]
    for number, file in enumerate([lost, *weights]):
        shutil.move(file, aside / str(number))
    shutil.rmtree(root / ".ratchet/tmp/weights", ignore_errors=True)
    try:
        with pytest.raises(BadInput, match="not found intact in"):
            resolve_weights("policy@champion", root)
        assert alias(root, "champion") == "2"
        assert rollback(root).after == "1"
        with pytest.raises(BadInput, match="has no readable listing"):
            rollback(root, to=2)
        assert alias(root, "champion") == "1"
    finally:
        for number, file in enumerate([lost, *weights]):
            shutil.move(aside / str(number), file)


def _files(root: Path, number: str) -> dict[str, str]:
    from mlflow.models import get_model_info

    connect(root)
    found = get_model_info(f"models:/policy/{number}").flavors["python_function"]["config"]["files"]
    return {name: md5 for name, md5 in found.items() if name == "model.safetensors"}


def test_the_champions_version_may_be_deleted_by_hand(root: Path) -> None:
    client = connect(root)
    first = client.get_model_version("policy", "1")
    extra = client.create_model_version("policy", first.source, run_id=first.run_id, tags=dict(first.tags))
    promote(root, 2, reason="the first")
    promote(root, extra.version, reason="better")
    client.delete_model_version("policy", extra.version)
    assert champion(root) is None
    shown = history(root)[-1]
    assert (shown.before, shown.after) == (str(extra.version), None)
    with pytest.raises(BadInput, match=f"there is no version '{extra.version}'"):
        rollback(root, to=extra.version)
    assert rollback(root).after == "2"


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
