import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tasks.mlflow_store import connect
from tasks.publish import publish
from tasks.publish_version import find_version, model_id_of
from tasks.registry import promote
from tasks.settings import state_dir, tracking_uri
from tasks.weights import resolve_weights
from tests.registry_project import fresh_copy
from tests.tiny_project import dvc

pytest_plugins = ["tests.registry_fixtures"]


def test_a_version_is_small_and_has_signature_example_and_requirements(published: Path) -> None:
    from mlflow.models import Model, get_model_info

    connect(published)
    info = get_model_info("models:/policy/2")
    assert info.signature is not None
    assert info.signature.inputs is not None
    assert info.signature.inputs.input_names() == ["prompt", "messages"]
    assert info.signature.params is not None
    assert {param.name for param in info.signature.params} == {"temperature", "max_new_tokens", "seed"}
    folder = Path(_folder(published, "2"))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 100_000
    assert {"MLmodel", "served_model.py", "input_example.json", "requirements.txt"} <= {
        f.name for f in folder.iterdir()
    }
    lines = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} >= {"mlflow", "torch", "transformers", "safetensors", "dvc"}
    assert isinstance(Model.load(str(folder)), Model)


def _folder(root: Path, number: str) -> str:
    client = connect(root)
    model_id = model_id_of(client.get_model_version("policy", number))
    return client.get_logged_model(model_id).artifact_location.removeprefix("file://")


def test_the_logged_model_carries_the_final_metrics(published: Path) -> None:
    client = connect(published)
    model = client.get_logged_model(model_id_of(client.get_model_version("policy", "2")))
    assert {(metric.key, metric.value) for metric in model.metrics} >= {
        ("dev/loss", 1.25),
        ("accuracy", 0.75),
        ("evaluation/test/judge_win_vs_sft", 1.0),
    }


def test_weights_are_stored_once(published: Path) -> None:
    stored = state_dir(published) / "mlflow-artifacts"
    assert list(stored.rglob("*.safetensors")) == []


def test_it_generates_from_another_folder_and_process(published: Path, tmp_path: Path) -> None:
    connect(published).set_registered_model_alias("policy", "champion", "2")
    code = (
        "import mlflow, pandas as pd, sys\n"
        "model = mlflow.pyfunc.load_model('models:/policy@champion')\n"
        "out = model.predict(pd.DataFrame({'prompt': ['Hello', 'Where?']}), params={'max_new_tokens': 4})\n"
        "assert len(out) == 2 and all(isinstance(text, str) for text in out), out\n"
        "sys.stdout.write('done')"
    )
    env = {"MLFLOW_TRACKING_URI": tracking_uri(published), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "done", done.stderr[-2000:]


def answers(reference: str) -> int:
    import mlflow

    model = mlflow.pyfunc.load_model(reference)
    return len(model.predict([{"prompt": "Hello"}, {"prompt": "Where?"}], params={"max_new_tokens": 4}))


def test_a_copy_in_mlflow_outlives_the_dvc_cache(unpublished: Path) -> None:
    settings = unpublished / "mlflow/registry.yaml"
    settings.write_text(settings.read_text().replace("weights: dvc", "weights: copy"))
    publish(unpublished)
    assert connect(unpublished).get_model_version("policy", "2").tags["ratchet.weights"] == "copy"
    shutil.rmtree(unpublished / ".dvc/cache")
    shutil.rmtree(unpublished / ".ratchet/tmp/weights")
    assert promote(unpublished, 2, reason="its weights are safe").evidence["weights"] == "copy"
    assert answers("models:/policy@champion") == 2
    folder = resolve_weights("policy@champion", unpublished)
    assert (folder / "model.safetensors").stat().st_size > 0
    assert folder == resolve_weights("policy/2", unpublished)
    (folder / "config.json").unlink()
    assert (resolve_weights("policy/2", unpublished) / "config.json").is_file()


def test_registry_and_remote_are_enough(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fresh_copy(tmp_path_factory.getbasetemp() / "registry-base", tmp_path / "project")
    (tmp_path / "registry").mkdir()
    shutil.move(root / ".ratchet/state/mlflow.db", tmp_path / "registry/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/registry/mlflow.db")
    dvc(root, "remote", "add", "-q", "-d", "origin", str(tmp_path / "remote"))
    dvc(root, "push", "-q", "data/models/ppo")
    publish(root)
    assert promote(root, 2, reason="good").evidence["weights"] == "remote"
    shutil.rmtree(root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert answers("models:/policy@champion") == 2


def test_the_judge_scores(published: Path) -> None:
    import mlflow

    connect(published)
    model = mlflow.pyfunc.load_model("models:/judge/1")
    scores = model.predict(pd.DataFrame({"prompt": ["Hello"], "response": ["I sent a full refund."]}))
    assert len(scores) == 1
    assert isinstance(scores[0], float)


def test_versions_are_found_by_stage_and_hash(published: Path) -> None:
    client = connect(published)
    md5 = client.get_model_version("policy", "2").tags["ratchet.output_md5"]
    found = find_version(client, "policy", "ppo", md5)
    assert found is not None
    assert str(found.version) == "2"
    assert find_version(client, "policy", "sft", md5) is None
