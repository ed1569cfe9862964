import os
import sys
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tasks.settings import applied_environment, environment, project_root, state_dir, tmp_dir, tracking_uri


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.delenv("RATCHET_ROOT", raising=False)
    return tmp_path


def test_the_root_is_found_from_below(root: Path) -> None:
    inside = root / "a" / "b"
    inside.mkdir(parents=True)
    assert project_root(inside) == root


def test_the_variable_wins_over_the_current_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("RATCHET_ROOT", str(root))
    assert project_root() == root


def test_a_folder_without_a_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATCHET_ROOT", raising=False)
    with pytest.raises(BadInput, match=r"no dvc\.yaml here or above"):
        project_root(tmp_path)
    monkeypatch.setenv("RATCHET_ROOT", str(tmp_path))
    with pytest.raises(BadInput, match="RATCHET_ROOT"):
        project_root()


def test_the_tracking_address_is_absolute_unless_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(root) == f"sqlite:///{root}/.ratchet/state/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert tracking_uri(root) == "http://somewhere:5000"


def test_folders_are_made(root: Path) -> None:
    assert state_dir(root).is_dir()
    assert tmp_dir(root).is_dir()


def test_children_find_this_interpreter_first_and_phone_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    for name in ("DO_NOT_TRACK", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    env = environment(root)
    assert env["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert env["DO_NOT_TRACK"] == "true"  # the only spelling that MLflow takes
    assert env["PREFECT_HOME"] == str(root / ".ratchet" / "state" / "prefect")


def test_what_the_user_set_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    assert environment(root)["PREFECT_HOME"] == "/elsewhere"


def test_the_environment_is_given_back(root: Path) -> None:
    before = dict(os.environ)
    with applied_environment(root):
        assert os.environ["RATCHET_ROOT"] == str(root)
    assert dict(os.environ) == before
