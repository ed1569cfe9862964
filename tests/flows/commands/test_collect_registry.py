"""`ratchet collect` of a registered policy."""

from pathlib import Path

import pytest

from flows.commands.collect import resolved

pytest_plugins = ["tests.registry_fixtures"]
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def test_an_alias_is_replaced_by_the_version_that_it_points_at(published: Path) -> None:
    """The alias may move on; what was collected must still say from which version."""
    reference, folder = resolved("policy@challenger", published)
    model, _, number = reference.partition("/")
    assert model.endswith("policy")
    assert number.isdigit()
    assert (folder / "config.json").is_file()
    assert resolved(f"policy/{number}", published) == (f"policy/{number}", folder)


def test_a_stage_or_a_folder_is_named_as_it_was_given(published: Path) -> None:
    folder = published / "data/models/ppo"
    assert resolved("ppo", published) == ("ppo", folder)
    assert resolved(str(folder), published) == (str(folder), folder)
