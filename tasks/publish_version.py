"""A registered version: a few kilobytes of model in MLflow, with its lineage, that find their weights by hash."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.dvc_store import DvcPlaces, output_files
from tasks.live_run import OUTPUT, STAGE, metric_name
from tasks.model_card import model_card
from tasks.registry_config import POLICY_STAGES, RegistryConfig
from tasks.registry_lookup import WEIGHTS
from tasks.stage_outputs import MODELS, StageOutput

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

REQUIRED_PACKAGES = ("torch", "transformers", "safetensors", "pandas", "jinja2", "dvc")


def find_version(client: MlflowClient, name: str, stage: str, md5: str) -> ModelVersion | None:
    """Return the registered version of that stage's output, the oldest one should there be several."""
    condition = f"name = '{name}' and tags.`{OUTPUT}` = '{md5}' and tags.`{STAGE}` = '{stage}'"
    found = client.search_model_versions(condition)
    return min(found, key=lambda version: int(version.version), default=None)


def model_id_of(version: ModelVersion) -> str:
    """Return the id of the logged model behind a version; not every store fills the field of that name."""
    return str(version.model_id or str(version.source).removeprefix("models:/"))


def register(
    client: MlflowClient,
    run_id: str,
    output: StageOutput,
    places: DvcPlaces,
    names: RegistryConfig,
    tags: Mapping[str, str],
) -> ModelVersion:
    """Log the thin model in a run and register it under its name.

    Args:
        client: the store.
        run_id: the run that holds the model.
        output: the trained model.
        places: where its weights lie.
        names: the registry's names.
        tags: lineage, given to the version.

    Returns:
        The new version.
    """
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    copy = names.weights == "copy"
    model_id, model_uri = _log_model(client, run_id, output, places, copy=copy)
    started = int(client.get_run(run_id).info.start_time)
    shown = [Metric(metric_name(name), value, started, 0, model_id=model_id) for name, value in output.metrics.items()]
    client.log_batch(run_id, metrics=shown)
    name = names.model_of(output.stage)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        name,
        model_uri,
        run_id=run_id,
        model_id=model_id,
        tags={**tags, WEIGHTS: names.weights},
        description=model_card(tags, output.metrics, output.locked.params),
        await_creation_for=0,
    )
    link = json.dumps([{"name": name, "version": str(version.version)}])
    client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
    return version


def _log_model(
    client: MlflowClient, run_id: str, output: StageOutput, places: DvcPlaces, *, copy: bool
) -> tuple[str, str]:
    """Log a few kilobytes: the code that finds the weights, and their hashes. Returns the model's id and address.

    With `copy` the weights themselves as well, taken from where they were found intact.

    Done in steps, because `mlflow.pyfunc.log_model` would load the weights to try the example out.
    """
    import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    from tasks.served_model import materialise

    is_policy = output.stage in POLICY_STAGES
    kind = "policy" if is_policy else "scorer"
    config = {
        "kind": kind,
        "output_md5": output.md5,
        "files": output_files(places, output.md5, MODELS + output.stage),
        "project_root": str(output.root),
        "cache_dir": str(places.cache),
        "remote": places.remote,
    }
    signature, example = _signature(is_policy=is_policy)
    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id,
        name=output.stage,
        source_run_id=run_id,
        params=run.data.params,
        model_type=kind,
    )
    with tempfile.TemporaryDirectory(prefix="ratchet-model-") as scratch:
        folder = str(Path(scratch) / "model")
        mlflow.pyfunc.save_model(
            folder,
            mlflow_model=Model(
                artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
            ),
            python_model=str(Path(__file__).with_name("served_model.py")),
            model_config=config,
            artifacts={"weights": str(materialise(config))} if copy else None,
            signature=signature,
            input_example=example,
            pip_requirements=[f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIRED_PACKAGES],
        )
        client.log_model_artifacts(model.model_id, folder)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id), f"models:/{model.model_id}"


def _signature(*, is_policy: bool) -> tuple[Any, Any]:
    """Describe input, output and options, with an example: prompts as plain text or as chat messages."""
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    prompt: list[Any] = [
        ColSpec(DataType.string, "prompt", required=False),
        ColSpec(Array(message), "messages", required=False),
    ]
    if is_policy:
        options = ParamSchema(
            [
                ParamSpec("temperature", DataType.double, 0.0),
                ParamSpec("max_new_tokens", DataType.long, 128),
                ParamSpec("seed", DataType.long, 0),
            ]
        )
        example = pd.DataFrame({"prompt": ["Hello, my parcel has not arrived. Where is it?"]})
        return ModelSignature(Schema(prompt), Schema([ColSpec(DataType.string)]), options), example
    inputs = Schema([*prompt, ColSpec(DataType.string, "response")])
    example = pd.DataFrame({"prompt": ["Hello, where is my parcel?"], "response": ["It is on its way."]})
    return ModelSignature(inputs, Schema([ColSpec(DataType.double)])), example
