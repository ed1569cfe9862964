import json
from pathlib import Path

from tasks.lock_file import read_lock
from tasks.mlflow_store import connect
from tasks.publish_evaluation import publish_evaluation
from tasks.registry_config import load_registry_config
from tasks.stage_outputs import EvaluationOutput, evaluation_output

pytest_plugins = ["tests.registry_fixtures"]


def test_the_numbers_are_on_run_version_and_card_once(published: Path) -> None:
    client, names = connect(published), load_registry_config(published)
    version = client.get_model_version("policy", "2")
    assert json.loads(version.tags["ratchet.evaluation.test"])["judge_win_low"] == 0.9
    assert "1.000 (95% interval 0.900 to 1.000)" in version.description
    assert "kl_coef 0.05" in version.description
    evaluation = evaluation_output(published, read_lock(published))
    assert evaluation is not None
    assert publish_evaluation(client, evaluation, names) == version.run_id
    assert len(client.get_metric_history(version.run_id, "evaluation/test/judge_win_vs_sft")) == 1


def test_another_evaluation_is_another_point_and_may_select_another_policy(published: Path) -> None:
    client, names = connect(published), load_registry_config(published)
    old = evaluation_output(published, read_lock(published))
    assert old is not None
    report = {"selected": "sft", "test": {"ppo": {"judge_win_vs_sft": 0.25}}}
    newer = EvaluationOutput(md5="f" * 32, policies=old.policies, report=report)
    publish_evaluation(client, newer, names)
    run_id = client.get_model_version("policy", "2").run_id
    points = client.get_metric_history(run_id, "evaluation/test/judge_win_vs_sft")
    assert sorted((point.step, point.value) for point in points) == [(0, 1.0), (1, 0.25)]
    assert str(client.get_model_version_by_alias("policy", "challenger").version) == "1"


def test_an_evaluation_of_unknown_policies_waits(published: Path) -> None:
    client, names = connect(published), load_registry_config(published)
    unknown = EvaluationOutput(md5="e" * 32, policies={"ppo": "0" * 32 + ".dir"}, report={"selected": "ppo"})
    assert publish_evaluation(client, unknown, names) is None
