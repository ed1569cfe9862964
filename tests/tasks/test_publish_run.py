import json
from pathlib import Path

from tasks.mlflow_store import connect
from tasks.publish_run import flat_params

pytest_plugins = ["tests.registry_fixtures"]


def test_a_run_has_params_metrics_history_samples_and_inputs(published: Path) -> None:
    client = connect(published)
    run = client.get_run(client.get_model_version("policy", "2").run_id)
    assert run.data.params == {"seed": "1", "ppo.kl_coef": "0.05", "ppo.updates": "3", "ppo.nested.clip": "0.2"}
    assert (run.data.metrics["final/dev/loss"], run.data.metrics["final/accuracy"]) == (1.25, 0.75)
    # Without live rows the curve has no clock: all points bear the start of the run.
    history = client.get_metric_history(run.info.run_id, "train/score")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.6), (3, 0.7)]
    assert {point.timestamp for point in history} == {run.info.start_time}
    inputs = {entry.dataset.name: entry.dataset for entry in run.inputs.dataset_inputs}
    assert set(inputs) == {"data/validated/demonstrations"}
    dataset = inputs["data/validated/demonstrations"]
    assert dataset.digest == run.data.tags["ratchet.data.data/validated/demonstrations"]
    assert json.loads(dataset.source) == {"uri": "data/validated/demonstrations"}


def test_samples_are_a_table_and_a_text(published: Path) -> None:
    client = connect(published)
    run_id = client.get_model_version("policy", "2").run_id
    table = json.loads(Path(client.download_artifacts(run_id, "samples.json")).read_text())
    assert table["columns"] == ["prompt", "response", "reward", "step"]
    assert table["data"] == [["user: Hello, where is order 201?", "I sent a full refund.", 0.5, 3]]
    assert "I sent a full refund." in Path(client.download_artifacts(run_id, "samples.txt")).read_text()
    entry = json.loads(Path(client.download_artifacts(run_id, "dvc/stage.json")).read_text())
    assert set(entry["outs"]) >= {"data/models/ppo", "data/samples/ppo.jsonl"}


def test_parameters_are_flattened_with_texts_left_as_they_are() -> None:
    nested = {"ppo": {"clip": 0.2, "files": ["a", "b"], "name": "x"}, "seed": 1}
    found = dict(flat_params(nested))
    assert found == {"ppo.clip": "0.2", "ppo.files": '["a", "b"]', "ppo.name": "x", "seed": "1"}


def test_lineage_and_what_it_was_computed_on_are_artifacts(published: Path) -> None:
    client = connect(published)
    run_id = client.get_model_version("policy", "2").run_id
    lineage = json.loads(Path(client.download_artifacts(run_id, "dvc/lineage.json")).read_text())
    assert set(lineage) == {"sft", "ppo"}
    assert "data/models/sft" in lineage["sft"]["outs"]
    # The stages of this project copy files and keep no record: unknown stays unknown.
    assert json.loads(Path(client.download_artifacts(run_id, "environment.json")).read_text()) == {
        "sft": None,
        "ppo": None,
    }
