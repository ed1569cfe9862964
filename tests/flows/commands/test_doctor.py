import json
import shutil
import socket
from pathlib import Path

import pytest

from flows.cli import main

ROOT = Path(__file__).parents[3]

# pygtrie, inside DVC, announces a change of its own to whoever uses it.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")


def test_every_check_says_something_about_this_project(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RATCHET_ROOT", str(ROOT))
    code = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in document["checks"]}
    assert {"python", "torch", "matmul", "disk", "git", "dvc", "writable", "params.yaml", "mlflow", "prefect"} <= set(
        checks
    )
    assert all(check["found"] for check in checks.values())
    assert all(check["remedy"] for check in checks.values() if check["state"] != "ok")
    assert [name for name in ("python", "torch", "matmul", "dvc") if checks[name]["state"] == "fail"] == []
    assert (code == 1) == (document["state"] == "fail")


def test_a_problem_is_shown_with_its_remedy_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setenv("RATCHET_ROOT", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free.getsockname()[1]}/api")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "fail  prefect" in out
    assert "fail prefect: Start that server, or unset PREFECT_API_URL" in out
    assert "fail params.yaml: " in out
    assert out.splitlines()[-1].endswith("problem(s) to solve")
