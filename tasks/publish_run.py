"""One trained model as an MLflow run, each step of which may be done twice without harm."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.dvc_store import DvcPlaces
from tasks.environments import Environment, environment_tags
from tasks.live_run import (
    DUPLICATE,
    KEY,
    OUTPUT,
    OWNER,
    STAGE,
    duplicate_runs,
    find_runs,
    log_rows,
    logged_steps,
    metric_name,
)
from tasks.lock_file import LockedStage, params_hash
from tasks.owner import owner
from tasks.publish_version import find_version, register
from tasks.registry_config import POLICY_STAGES, RegistryConfig
from tasks.stage_outputs import StageOutput

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """How an output came to be."""

    commit: str | None
    """The commit that reproduces it, where there is one."""
    lineage: Mapping[str, LockedStage]
    """Lock entries of its stage and of all stages before it."""
    environments: Mapping[str, Environment | None]
    """What each of these was computed on."""


PER_CALL = 100
"""MLflow's limit of parameters or tags in one call."""
SAMPLE_ROWS = 200


def publish_output(
    client: MlflowClient,
    experiment: str,
    output: StageOutput,
    places: DvcPlaces,
    names: RegistryConfig,
    origin: Origin,
) -> str:
    """Publish one output.

    Args:
        client: the store.
        experiment: id of Ratchet's experiment.
        output: the trained model.
        places: where its weights lie.
        names: the registry's names.
        origin: what it was made from, and on.

    Returns:
        Id of the run that holds it.
    """
    run = _run_for(client, experiment, output)
    run_id = str(run.info.run_id)
    version = find_version(client, names.model_of(output.stage), output.stage, output.md5)
    if version is None or run.info.status != "FINISHED":
        client.set_tag(run_id, OWNER, owner())  # should this process be killed, the run is known to be nobody's
        parents = _parents(client, output, names)
        tags = _tags(output, parents, origin)
        _fill(client, run, output, tags, origin)
        if version is None:
            version = register(client, run_id, output, places, names, tags)
        client.update_run(run_id, name=f"{output.stage}-{output.short}")
        last = output.live[1][-1].get("time") if output.live else None
        client.set_terminated(run_id, "FINISHED", end_time=int(last * 1000) if last else None)
    if output.live is not None:
        duplicate_runs(client, experiment, output.stage, key=output.live[0], keep=str(version.run_id))
    return str(version.run_id)


def _run_for(client: MlflowClient, experiment: str, output: StageOutput) -> Run:
    """Return the run begun for this output, else the live run of the training that made it, else a new one."""
    begun = find_runs(client, experiment, {STAGE: output.stage, OUTPUT: output.md5})
    if begun:
        return begun[-1]
    if output.live is not None:
        followed = find_runs(client, experiment, {STAGE: output.stage, KEY: output.live[0]})
        free = [run for run in followed if OUTPUT not in run.data.tags and DUPLICATE not in run.data.tags]
        if free:
            client.update_run(free[0].info.run_id, status="RUNNING")
            return client.get_run(free[0].info.run_id)
    first = output.live[1][0].get("time") if output.live else None
    start = int((first or time.time()) * 1000)
    tags = {STAGE: output.stage, OUTPUT: output.md5}
    return client.create_run(experiment, start_time=start, run_name=f"{output.stage}-{output.short}", tags=tags)


def _fill(client: MlflowClient, run: Run, output: StageOutput, tags: Mapping[str, str], origin: Origin) -> None:
    """Write parameters, metrics, history, samples and inputs; timestamps repeat, so a second time adds nothing."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, started = run.info.run_id, int(run.info.start_time)
    params = [Param(name, value) for name, value in flat_params(output.locked.params)]
    for start in range(0, len(params), PER_CALL):
        client.log_batch(run_id, params=params[start : start + PER_CALL])
    final = [Metric(metric_name(f"final/{name}"), value, started, 0) for name, value in output.metrics.items()]
    client.log_batch(run_id, metrics=final, tags=[RunTag(name, value) for name, value in tags.items()])
    rows = output.live[1] if output.live else output.curve
    log_rows(client, run_id, rows, skip=logged_steps(client, run_id, rows), timestamp=started)
    client.log_inputs(run_id, datasets=_datasets(output))
    client.log_dict(run_id, _lock_entry(output.locked), "dvc/stage.json")
    client.log_dict(run_id, {name: _lock_entry(entry) for name, entry in origin.lineage.items()}, "dvc/lineage.json")
    client.log_dict(run_id, dict(origin.environments), "environment.json")
    if output.samples:
        table, text = _sample_table(output.samples[-SAMPLE_ROWS:])
        client.log_dict(run_id, table, "samples.json")
        client.log_text(run_id, text, "samples.txt")
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": "samples.json", "type": "table"}]))


def flat_params(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield parameters as `section.name` and text, as MLflow wants them."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from flat_params(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _tags(output: StageOutput, parents: Mapping[str, str], origin: Origin) -> dict[str, str]:
    """Lineage: everything the model was made from, by hash."""
    tags = {
        STAGE: output.stage,
        OUTPUT: output.md5,
        "ratchet.params_hash": params_hash(output.locked),
        "ratchet.code_hash": output.code,
        "ratchet.cmd": output.locked.cmd[:5000],
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": f"ratchet stage {output.stage}",
        **{f"ratchet.data.{path}": md5 for path, md5 in output.data.items()},
        **{f"ratchet.parent.{stage}": value for stage, value in parents.items()},
        **environment_tags(origin.environments.get(output.stage)),
    }
    if output.stage in POLICY_STAGES:
        tags["method"] = output.stage
    if origin.commit is not None:
        tags |= {"ratchet.git_commit": origin.commit, "mlflow.source.git.commit": origin.commit}
    if output.live is not None:
        tags[KEY] = output.live[0]
    return tags


def _parents(client: MlflowClient, output: StageOutput, names: RegistryConfig) -> dict[str, str]:
    """Name the versions that this one was made from, as `policy/1 md5`."""
    found = {}
    for stage, md5 in output.parents.items():
        version = find_version(client, names.model_of(stage), stage, md5)
        where = f"{version.name}/{version.version}" if version else "unregistered"
        found[stage] = f"{where} {md5}"
    return found


def _datasets(output: StageOutput) -> list[Any]:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return [
        DatasetInput(
            # The address stays relative: it means the same in every clone, and no machine's path gets out.
            Dataset(name=path, digest=md5, source_type="local", source=json.dumps({"uri": path})),
            [InputTag("mlflow.data.context", "training")],
        )
        for path, md5 in output.data.items()
    ]


def _lock_entry(locked: LockedStage) -> dict[str, Any]:
    return {
        "stage": locked.name,
        "cmd": locked.cmd,
        "deps": dict(locked.deps),
        "params": dict(locked.params),
        "outs": dict(locked.outs),
    }


def _sample_table(rows: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Lay the samples out as the table that MLflow's page shows, and as text to read."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_prompt_text(row.get(name)) if name == "prompt" else row.get(name) for name in columns] for row in rows]
    parts = [
        f"step {row.get('step', '-')}\n> {_prompt_text(row.get('prompt'))}\n{row.get('response', '')}\n" for row in rows
    ]
    return {"columns": columns, "data": cells}, "\n".join(parts)


def _prompt_text(prompt: Any) -> str:
    if isinstance(prompt, list):
        return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
    return str(prompt)
