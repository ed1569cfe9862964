"""The whole path at reduced size, as a user goes it: Prefect server, DVC, MLflow and every stage are the real ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clone import clone_project, ratchet

STAGES = {"generate", "validate", "sft", "reward", "judge", "ppo", "dpo", "evaluate"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A copy of the project in which `ratchet run` has gone through once."""
    root = clone_project(project, tmp_path_factory.mktemp("whole") / "project")
    ratchet(root, "use", "tiny", "--yes")
    planned = {stage["name"]: stage["action"] for stage in ratchet(root, "plan")["stages"]}
    assert planned == dict.fromkeys(STAGES, "run")
    # At this size PPO need not beat SFT; what the gate then says is asked in its own tests.
    registry = root / "mlflow/registry.yaml"
    registry.write_text(registry.read_text().replace("first_champion: beats_sft", "first_champion: any"))
    run = ratchet(root, "run")
    assert {stage["name"]: stage["status"] for stage in run["stages"]} == dict.fromkeys(STAGES, "run")
    return root


def test_a_second_run_finds_nothing_to_do(done: Path) -> None:
    run = ratchet(done, "run")
    assert set(run["up_to_date"]) == STAGES
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"], cwd=done, capture_output=True, text=True, check=True
    )
    assert json.loads(status.stdout) == {}


def test_nothing_tracked_holds_a_clock_a_path_or_a_host(done: Path) -> None:
    texts = [done / "dvc.lock", *(done / "data/metrics").iterdir(), *(done / "data/curves").iterdir()]
    texts += [path for path in (done / "data/models").rglob("*.json*") if path.name != "tokenizer.json"]
    for path in texts:
        text = path.read_text()
        assert str(done) not in text, path
        assert '"time"' not in text, path
        assert "_name_or_path" not in text, path


def test_the_champion_is_registered_and_answers_from_another_folder(done: Path, tmp_path: Path) -> None:
    status = ratchet(done, "status")
    assert status["champion"] is not None
    script = (
        "import sys, mlflow\n"
        f"mlflow.set_tracking_uri('sqlite:///{done}/.ratchet/state/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/policy@champion')\n"
        "print('ANSWER', repr(model.predict([{'prompt': 'Where is order 202?'}])))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    answer = next(line for line in result.stdout.splitlines() if line.startswith("ANSWER"))
    assert len(answer) > len("ANSWER ['x']")


def test_publishing_again_changes_nothing(done: Path) -> None:
    report = ratchet(done, "publish")
    assert report["published"] == []


def test_chat_and_report_work_on_the_result(done: Path) -> None:
    reply = ratchet(done, "chat", "policy@champion", "--prompt", "Where is order 202?")
    assert isinstance(reply["response"], str)
    page = Path(ratchet(done, "report")["report"]).read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")


def test_the_same_inputs_give_the_same_hashes_again(done: Path) -> None:
    before = (done / "dvc.lock").read_text()
    # DVC deletes the outputs and the flow goes through the stages again, PPO and DPO side by side.
    run = ratchet(done, "run", *(word for stage in ("sft", "ppo", "dpo") for word in ("--force", stage)))
    assert {stage["name"] for stage in run["stages"] if stage["status"] == "run"} >= {"sft", "ppo", "dpo"}
    assert sorted((done / "dvc.lock").read_text().splitlines()) == sorted(before.splitlines())


def test_one_changed_parameter_retrains_only_what_needs_it(done: Path) -> None:
    params = done / "params.yaml"
    params.write_text(params.read_text().replace("kl_coef: 0.15", "kl_coef: 0.2"))
    planned = {stage["name"]: stage["action"] for stage in ratchet(done, "plan")["stages"]}
    assert planned == {**dict.fromkeys(STAGES, "cached"), "ppo": "run", "evaluate": "maybe"}
    ratchet(done, "run", "--until", "ppo")
    # Back again: DVC still has the outputs of the first parameter, so nothing is trained.
    params.write_text(params.read_text().replace("kl_coef: 0.2", "kl_coef: 0.15"))
    planned = {stage["name"]: stage["action"] for stage in ratchet(done, "plan")["stages"]}
    assert planned["ppo"] == "restore"
