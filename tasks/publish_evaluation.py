"""The evaluation's numbers, put onto the policy versions that it looked at, and `@challenger` onto the selected one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tasks.live_run import metric_name
from tasks.marks import marks
from tasks.model_card import model_card
from tasks.publish_version import find_version, model_id_of
from tasks.registry_config import RegistryConfig
from tasks.stage_outputs import EvaluationOutput, flat_numbers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

EVALUATION = "ratchet.evaluation"
TEST_NUMBERS = "ratchet.evaluation.test"
BLOCKS = ("dev", "test", "unlike", "tax")
"""Parts of the evaluation that have numbers by policy; an older one may lack some."""


def publish_evaluation(client: MlflowClient, evaluation: EvaluationOutput, names: RegistryConfig) -> str | None:
    """Publish an evaluation once; an evaluation that a version already has is left as it is.

    Args:
        client: the store.
        evaluation: what was found, about which policies.
        names: the registry's names.

    Returns:
        Id of the selected policy's run, None when that policy is not registered (yet).
    """
    selected = evaluation.report.get("selected")
    chosen: ModelVersion | None = None
    for stage, md5 in evaluation.policies.items():
        version = find_version(client, names.policy, stage, md5)
        if version is None:
            continue
        if version.tags.get(EVALUATION) != evaluation.md5:
            _attach(client, version, stage, evaluation)
        if stage == selected:
            chosen = version
    if chosen is None:
        return None
    client.set_registered_model_alias(names.policy, names.aliases.challenger, str(chosen.version))
    return str(chosen.run_id)


def _attach(client: MlflowClient, version: ModelVersion, stage: str, evaluation: EvaluationOutput) -> None:
    """Log the numbers to the version's run, its logged model, its tags and its description; the hash comes last."""
    from mlflow.entities import Metric

    run = client.get_run(str(version.run_id))
    # A later evaluation of the same weights is another point of the same curve.
    step = int(run.data.tags.get(f"{EVALUATION}.count", "0"))
    when = int(run.info.start_time) + step
    numbers = {block: (evaluation.report.get(block) or {}).get(stage) or {} for block in BLOCKS}
    # The group keeps these numbers apart from those that the stage itself reported about its splits.
    metrics = [
        Metric(metric_name(f"evaluation/{block}/{name}"), value, when, step, model_id=model_id_of(version))
        for block in BLOCKS
        for name, value in flat_numbers(numbers[block])
    ]
    if metrics:
        client.log_batch(run.info.run_id, metrics=metrics)
    name, number = version.name, str(version.version)
    client.set_model_version_tag(name, number, TEST_NUMBERS, json.dumps(numbers["test"]))
    final = {key.removeprefix("final/"): value for key, value in run.data.metrics.items() if key.startswith("final/")}
    card = model_card(
        version.tags, final, _params(run.data.params), numbers["test"],
        tax=numbers["tax"], marks=_verdicts(stage, evaluation),
    )  # fmt: skip
    client.update_model_version(name, number, card)
    client.set_tag(run.info.run_id, EVALUATION, evaluation.md5)
    client.set_tag(run.info.run_id, f"{EVALUATION}.count", str(step + 1))
    client.set_model_version_tag(name, number, EVALUATION, evaluation.md5)


def _verdicts(stage: str, evaluation: EvaluationOutput) -> list[str]:
    """The sentences of the policy's own marks; those about another model are not said of this one."""
    own = (evaluation.report.get("marks") or {}).get(stage) or {}
    return [mark.sentence for mark in marks({"evaluate": {"marks": {stage: own}}})]


def _params(flat: dict[str, str]) -> dict[str, object]:
    """Fold `section.name` back into sections, as far as the card needs them."""
    nested: dict[str, object] = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name:
            inner = nested.setdefault(section, {})
            if isinstance(inner, dict):
                inner[name] = value
        else:
            nested[section] = value
    return nested
