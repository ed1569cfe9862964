import json
from pathlib import Path

import pytest

from flows.cli import main

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
    }
