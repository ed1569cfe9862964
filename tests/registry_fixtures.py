"""Small real projects for tests of the registry, each with a SQLite store of its own.

A test file takes them by `pytest_plugins = ["tests.registry_fixtures"]`.
"""

from pathlib import Path

import pytest

from tests.registry_project import fresh_copy


@pytest.fixture(scope="module")
def unpublished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose pipeline has run and of which MLflow knows nothing."""
    return fresh_copy(tmp_path_factory.getbasetemp() / "registry-base", tmp_path_factory.mktemp("fresh") / "project")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, published; tests that share it may add to it."""
    from tasks.publish import publish

    base = tmp_path_factory.getbasetemp() / "registry-base"
    root = fresh_copy(base, tmp_path_factory.mktemp("published") / "project")
    assert publish(root).waiting is None
    return root
