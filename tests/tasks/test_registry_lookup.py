from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.mlflow_store import connect
from tasks.registry_config import load_registry_config
from tasks.registry_lookup import aliased, aliases_of, find, identity, opened, registered

pytest_plugins = ["tests.registry_fixtures"]


def test_what_a_person_types_finds_a_version(published: Path) -> None:
    connect(published).set_registered_model_alias("policy", "champion", "1")
    with opened(published) as (client, config):
        for typed in ("1", "v1", "V1", "policy/1", "policy/v1", "@champion", "policy@champion"):
            assert find(client, config, typed).version in (1, "1"), typed
        assert find(client, config, "judge/1").name == "judge"
        for typed, model in (("judge@champion", "judge"), ("policy@nobody", "policy"), ("9", "policy")):
            with pytest.raises(BadInput, match=f"{model}: there is no version '{typed}'; known are 1"):
                find(client, config, typed)
        with pytest.raises(BadInput, match="known are none yet, so `ratchet publish` first"):
            find(client, config, "nothing/1")


def test_a_registered_model_is_told_from_a_later_one_of_its_name(published: Path) -> None:
    client, config = connect(published), load_registry_config(published)
    found = aliased(client, config, config.aliases.challenger)
    assert found is not None
    assert (found.reference, found.decision) == ("policy/2", "")
    assert aliases_of(client, "nothing") == {}
    assert registered(client, "nothing") is None
    assert identity(None) == ""
    client.create_registered_model("twice")
    first = identity(registered(client, "twice"))
    client.delete_registered_model("twice")
    client.create_registered_model("twice")
    assert identity(registered(client, "twice")) != first
