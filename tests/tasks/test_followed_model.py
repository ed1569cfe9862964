"""An alias that moves, and one that leads nowhere; the whole path is in tests/flows/test_serving.py."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from rlhf.errors import BadInput
from tasks.followed_model import FollowedModel

pytest_plugins = ["tests.registry_fixtures"]


def test_a_model_is_exchanged_when_its_alias_moves(published: Path) -> None:
    client = MlflowClient(f"sqlite:///{published}/.ratchet/state/mlflow.db")
    client.set_registered_model_alias("policy", "champion", "1")
    model = FollowedModel(published, "policy@champion")
    seen = []
    model.on_change = lambda loaded: seen.append(loaded.name)
    before = model.current.answerer
    assert not model.look()
    client.set_registered_model_alias("policy", "champion", "2")
    assert model.look()
    assert (model.current.name, seen) == ("policy/2", ["policy/2"])
    assert model.current.answerer is not before
    client.delete_registered_model_alias("policy", "champion")
    assert not model.look()
    assert model.current.name == "policy/2"
    assert "policy@champion" in str(model.problem)


def test_a_number_a_stage_and_a_folder_are_not_followed(published: Path) -> None:
    for reference, name in (("policy/1", "policy/1"), ("ppo", "ppo"), (str(published / "data/models/sft"),) * 2):
        model = FollowedModel(published, reference)
        assert (model.follows, model.current.name) == (False, name)


def test_a_reward_model_is_no_policy(published: Path) -> None:
    with pytest.raises(BadInput, match="only policies are served"):
        FollowedModel(published, "judge@champion")
    with pytest.raises(BadInput, match="reward model"):
        FollowedModel(published, "judge")
