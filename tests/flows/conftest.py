"""Projects that the tests of flows start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import LocalServer
from tests.tiny_project import copy_of, dvc, make_project


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    new = make_project(tmp_path_factory.mktemp("template") / "new")
    finished = copy_of(new, tmp_path_factory.mktemp("template") / "finished")
    dvc(finished, "repro", "-q")
    return {"new": new, "finished": finished}


@pytest.fixture
def new_project(templates: dict[str, Path], tmp_path: Path) -> Path:
    """A project in which nothing has run."""
    return copy_of(templates["new"], tmp_path / "project")


@pytest.fixture
def finished_project(templates: dict[str, Path], tmp_path: Path) -> Path:
    """A project in which everything is up to date."""
    return copy_of(templates["finished"], tmp_path / "project")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("server")
    (root / "dvc.yaml").write_text("stages: {}\n")
    with LocalServer(root) as server:
        server.wait()
        yield server
