import json
import shutil
from pathlib import Path

import pytest

from flows.cli import main
from tasks.settings import state_dir
from tests.tiny_project import command, dvc

pytest_plugins = ["tests.registry_fixtures"]


def test_publish_says_what_it_did_and_waits_when_mlflow_is_down(
    unpublished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--root", str(unpublished)]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        assert main(["publish", *where]) == 1
    assert "waiting: MLflow at http://127.0.0.1:9 is not reachable" in capsys.readouterr().out
    assert main(["publish", *where]) == 0
    assert capsys.readouterr().out == "published: sft, judge, ppo, evaluate\n"
    assert main(["publish", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "published": [],
        "unchanged": ["sft", "judge", "ppo", "evaluate"],
        "waiting": None,
        "pushed": [],
        "unpushed": None,
    }


def test_outputs_go_to_the_remote_first_and_tags_last(
    unpublished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "project"
    shutil.copytree(unpublished, root, symlinks=True)
    (state_dir(root) / "published.json").unlink(missing_ok=True)
    (state_dir(root) / "mlflow.db").unlink()
    dvc(root, "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    command(root, "git", "remote", "add", "origin", str(tmp_path / "bare.git"))
    assert main(["publish", "--json", "--root", str(root)]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["published"] == ["sft", "judge", "ppo", "evaluate"]
    assert report["unpushed"].startswith("the git remote origin did not take the tags of the versions: ")
    assert (tmp_path / "store" / "files" / "md5").is_dir()
    command(tmp_path, "git", "init", "-q", "--bare", "bare.git")
    assert main(["publish", "--root", str(root)]) == 0
    assert "pushed to git: tags/ratchet/judge/v1, tags/ratchet/policy/v1, tags/ratchet/policy/v2" in (
        capsys.readouterr().out
    )
