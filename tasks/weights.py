"""From a reference that a person types to a folder with weights."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from rlhf.errors import BadInput
from tasks.registry_config import MODEL_STAGES, load_registry_config
from tasks.settings import tmp_dir
from tasks.stage_outputs import MODELS


def resolve_weights(reference: str, root: Path) -> Path:
    """Return the folder of a model.

    Args:
        reference: a registered version ("policy@champion", "policy/3", "policy/v3"), a stage whose present output is
            meant ("ppo"), or a folder.
        root: the project's root.

    Raises:
        BadInput: nothing goes by that name, or its weights are nowhere to be found.
        StoreUnreachable: a registered version is meant and MLflow is down.
    """
    if reference in MODEL_STAGES:
        folder = root / MODELS / reference
        if not (folder / "config.json").is_file():
            raise BadInput(f"{MODELS}{reference}: there is no model; `ratchet run --until {reference}` makes it")
        return folder
    config = load_registry_config(root)
    match = re.fullmatch(r"(?P<name>[^/@]+)(?:@(?P<alias>[\w-]+)|/[vV]?(?P<number>\d+))", reference)
    for name in (match["name"], config.prefix + match["name"]) if match else ():
        if match and name in config.names:
            return registered_weights(root, name, number=match["number"], alias=match["alias"])
    path = Path(reference).expanduser()
    for folder in (path, root / path):
        if (folder / "config.json").is_file():
            return folder.resolve()
    raise BadInput(
        f"{reference!r} is no model: wanted {config.policy}@champion, {config.policy}/3, a stage "
        f"({', '.join(MODEL_STAGES)}), or a folder with config.json and weights"
    )


def registered_weights(root: Path, name: str, *, number: str | None = None, alias: str | None = None) -> Path:
    """Return the checked weights of a registered version, by its number or by an alias.

    Raises:
        BadInput: no such version, or its weights are nowhere to be found.
        StoreUnreachable: MLflow is down.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.models import get_model_info

    from tasks.mlflow_store import connect, translated
    from tasks.served_model import WeightsMissing, materialise

    client = connect(root)
    with translated(client.tracking_uri):
        try:
            if alias is not None:
                found = client.get_model_version_by_alias(name, alias)
            else:
                found = client.get_model_version(name, str(number))
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            asked = f"{name}@{alias}" if alias is not None else f"{name}/{number}"
            raise BadInput(f"{asked}: not in the registry; `ratchet status` shows what is") from error
        flavor = get_model_info(f"models:/{name}/{found.version}").flavors["python_function"]
    (tmp_dir(root) / "weights").mkdir(exist_ok=True)
    # The registry may be shared: paths recorded on another machine are replaced by this project's own.
    from tasks.dvc_store import dvc_places

    places = dvc_places(root)
    config = {**flavor["config"], "project_root": str(root), "cache_dir": str(places.cache)}
    config["remote"] = places.remote or config.get("remote")
    config["copy"] = str(tmp_dir(root) / "weights" / f"{str(config['output_md5']).removesuffix('.dir')}.copy")
    try:
        return materialise(config)
    except WeightsMissing as error:
        if "weights" not in (flavor.get("artifacts") or {}):
            raise BadInput(str(error)) from error
    with translated(client.tracking_uri):
        _download(f"models:/{name}/{found.version}/{flavor['artifacts']['weights']['path']}", Path(config["copy"]))
    try:
        return materialise(config)
    except WeightsMissing as error:
        raise BadInput(f"{error}; the copy in MLflow is not intact either") from error


def _download(uri: str, target: Path) -> None:
    """Bring MLflow's copy of the weights here, whole or not at all."""
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix=".copy-", dir=target.parent) as scratch:
        fetched = Path(download_artifacts(artifact_uri=uri, dst_path=scratch))
        shutil.rmtree(target, ignore_errors=True)
        fetched.rename(target)
