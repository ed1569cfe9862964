from pathlib import Path

import pytest

from rlhf.errors import StageFailed
from tasks.remote import push_outputs
from tests.tiny_project import dvc


def test_without_a_remote_nothing_happens(finished_project: Path) -> None:
    assert push_outputs(finished_project, on_line=lambda line: None) is None


def test_outputs_and_the_run_cache_are_pushed(finished_project: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    dvc(finished_project, "remote", "add", "-q", "-d", "store", str(remote))
    assert push_outputs(finished_project, on_line=lambda line: None) == str(remote)
    pushed = [path.read_bytes() for path in remote.rglob("*") if path.is_file()]
    assert (finished_project / "last.txt").read_bytes() in pushed
    assert (remote / "runs").is_dir()


def test_a_remote_that_refuses_is_one_sentence(finished_project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    dvc(finished_project, "remote", "add", "-q", "-d", "store", str(tmp_path / "file"))
    with pytest.raises(StageFailed, match="did not take the outputs") as caught:
        push_outputs(finished_project, on_line=lambda line: None)
    assert "\n" not in str(caught.value)
