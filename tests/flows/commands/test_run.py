import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from flows.run_lock import run_lock
from tests.tiny_project import dvc

REPOSITORY = Path(__file__).parents[3]


def test_nothing_to_do_is_said_at_once(finished_project: Path) -> None:
    env = {**os.environ, "RATCHET_ROOT": str(finished_project)}
    code = (
        "import sys; from flows.cli import main; code = main(['run']);"
        " heavy = [name for name in ('prefect', 'mlflow', 'torch') if name in sys.modules];"
        " sys.stderr.write(' '.join(heavy)); sys.exit(code)"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing to do: 4 stages are up to date and everything is published")
    assert done.stderr == ""  # none of the heavy libraries was imported
    assert os.times().children_user - before.children_user < 3  # CPU seconds, whatever else this machine does


def test_nothing_to_do_for_a_program(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(os.environ)
    assert main(["run", "--json", "--until", "left", "--root", str(finished_project)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["up_to_date"] == ["first", "left"]
    assert dict(os.environ) == before


def test_settings_outside_what_is_recommended_are_named(
    finished_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (finished_project / "params.yaml").open("a") as stream:
        stream.write("ppo: {gamma: 0.5}\n")
    assert main(["run", "--json", "--root", str(finished_project)]) == 0
    said = capsys.readouterr()
    (advice,) = json.loads(said.out)["advice"]
    assert advice["sentence"].startswith("ppo.gamma is 0.5, below the 0.99 to 1 recommended for models of any size")
    assert f"warning: {advice['sentence']}\n" in said.err


def test_a_run_under_way_is_named(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_lock(finished_project):
        assert main(["run", "--root", str(finished_project)]) == 1
    assert f"process {os.getpid()}, since" in capsys.readouterr().err


def test_an_unknown_stage_is_bad_usage(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--force", "nothing", "--root", str(finished_project)]) == 2
    assert "no stage 'nothing'" in capsys.readouterr().err


def test_training_on_a_part_of_the_data_is_refused(
    finished_project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # never reached
    (finished_project / "more.txt").write_text("more\n")
    dvc(finished_project, "add", "-q", "more.txt")
    (finished_project / "more.txt").unlink()
    (finished_project / "raw.txt").write_text("new\n")
    assert main(["run", "--root", str(finished_project)]) == 2
    assert "more.txt: missing, though more.txt.dvc names it" in capsys.readouterr().err
