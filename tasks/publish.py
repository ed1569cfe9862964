"""Make MLflow agree with dvc.lock: every trained model a run and a version, every evaluation on its policies."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import BadInput
from tasks.dvc_store import dvc_places, is_here
from tasks.environments import environments
from tasks.lock_file import LockedStage, lineage, read_lock
from tasks.mlflow_store import StoreUnreachable, connect, exclusive, experiment_id, translated
from tasks.publish_evaluation import publish_evaluation
from tasks.publish_ledger import Ledger, pending
from tasks.publish_run import Origin, publish_output
from tasks.publish_version import find_version
from tasks.pushed_refs import push_refs
from tasks.registry_config import RegistryConfig, load_registry_config
from tasks.settings import state_dir
from tasks.snapshot import snapshot, tag_version
from tasks.stage_outputs import EVALUATE, StageOutput, evaluation_output, model_outputs
from tasks.version_commit import COMMIT, commit_version

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["PublishReport", "pending", "publish"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishReport:
    """What a call of `publish` did, by stage names ("evaluate" for the evaluation)."""

    published: list[str]
    unchanged: list[str]
    waiting: str | None
    """Why something could not be published now, None when nothing waits."""
    pushed: list[str] = field(default_factory=list)
    """Git refs that the git remote has since this call."""
    unpushed: str | None = None
    """Why refs could not be pushed; the next call tries again."""


def publish(root: Path, *, commit: str | None = None) -> PublishReport:
    """Publish what MLflow does not have yet; doing it again changes nothing.

    Args:
        root: the project's root.
        commit: the commit that the outputs were made from; by default the tree is snapshotted as it stands. Each
            version gets a commit of its own on top of it, which the tag `ratchet/NAME/vN` names.

    Returns:
        What was published and what was there already. MLflow being down is no error, nor are models that dvc.lock
        records and this copy of the project has not got, as in a fresh clone: the report says so, and the next call
        catches up.

    Raises:
        BadInput: dvc.lock, mlflow/registry.yaml or an output file cannot be read.
    """
    names = load_registry_config(root)
    lock = read_lock(root)
    outputs = model_outputs(root, lock)
    evaluation = evaluation_output(root, lock)
    done: list[str] = []
    with exclusive(state_dir(root) / "publish.lock"):
        ledger = Ledger(root)
        keys = [output.key for output in outputs] + ([evaluation.key] if evaluation else [])
        unpublished, places = set(ledger.missing(keys)), dvc_places(root)
        absent = [output for output in outputs if output.key in unpublished and not is_here(places, output.md5)]
        wanted = unpublished - {output.key for output in absent}
        waiting = _absence(absent)
        try:
            if wanted:
                client = connect(root)
                commit = commit or _snapshot(root)
                with translated(client.tracking_uri):
                    todo = [output for output in outputs if output.key in wanted]
                    done += _publish_models(client, root, todo, names, ledger, commit)
                    if evaluation is not None and evaluation.key in wanted:
                        run_id = publish_evaluation(client, evaluation, names)
                        if run_id is not None:
                            ledger.add(evaluation.key, run_id)
                            done.append(EVALUATE)
        except StoreUnreachable as error:
            waiting = str(error)
        pushed = push_refs(root)
    everything = [output.stage for output in outputs] + ([EVALUATE] if evaluation else [])
    by_key = dict(zip(keys, everything, strict=True))
    return PublishReport(
        published=done,
        unchanged=[name for key, name in by_key.items() if key not in unpublished],
        waiting=waiting,
        pushed=pushed.done,
        unpushed=pushed.failure,
    )


def _absence(outputs: list[StageOutput]) -> str | None:
    """Say which models are not here; None when all are."""
    if not outputs:
        return None
    names = ", ".join(output.stage for output in outputs)
    return f"{names}: the DVC cache has not got the weights; `ratchet run` makes them, or `dvc fetch` brings them"


def _publish_models(
    client: MlflowClient,
    root: Path,
    outputs: list[StageOutput],
    names: RegistryConfig,
    ledger: Ledger,
    commit: str | None,
) -> list[str]:
    if not outputs:
        return []
    experiment, places, lock = experiment_id(client, root), dvc_places(root), read_lock(root)
    done = []
    for output in outputs:
        known = find_version(client, names.model_of(output.stage), output.stage, output.md5)
        origin = _origin(root, output, lock, commit, known.tags.get(COMMIT) if known else None)
        run_id = publish_output(client, experiment, output, places, names, origin)
        version = known or find_version(client, names.model_of(output.stage), output.stage, output.md5)
        made_from = version.tags.get(COMMIT) if version else None
        if version is not None and made_from:
            _tag(root, version.name, str(version.version), made_from)
        ledger.add(output.key, run_id)
        done.append(output.stage)
    return done


def _origin(
    root: Path, output: StageOutput, lock: dict[str, LockedStage], base: str | None, known: str | None
) -> Origin:
    """Say what an output was made from and on; a version keeps the commit that it has."""
    before = lineage(lock, output.stage)
    made_on = environments(root, before)
    commit = known
    if commit is None:
        try:
            commit = commit_version(root, base, output.stage, output.md5, lock, made_on)
        except BadInput as error:  # a version without a commit is still worth publishing
            log.warning("%s is published without a git commit: %s", output.stage, error)
    return Origin(commit=commit, lineage=before, environments=made_on)


def _snapshot(root: Path) -> str | None:
    """Commit the tree beside the user's branch; a version without a commit is still worth publishing."""
    try:
        return snapshot(root, "publish")
    except BadInput as error:
        log.warning("published without a git commit: %s", error)
        return None


def _tag(root: Path, name: str, version: str, commit: str) -> None:
    try:
        tag_version(root, name, version, commit)
    except BadInput as error:  # version numbers start again after a registry was deleted, and so may meet old tags
        log.warning("no git tag for %s/%s: %s", name, version, error)
