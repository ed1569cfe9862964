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


def test_unlike_prompts_tax_and_marks_reach_the_run_and_the_card(published: Path) -> None:
    client, names = connect(published), load_registry_config(published)
    old = evaluation_output(published, read_lock(published))
    assert old is not None
    run_id = str(client.get_model_version("policy", "2").run_id)
    # The project's own evaluation is of the older form and was published without them.
    groups = ("evaluation/unlike/", "evaluation/tax/")
    assert not [name for name in client.get_run(run_id).data.metrics if name.startswith(groups)]
    marks = {"kl": 4.0, "kl_low": 0.5, "kl_high": 3.5, "over_optimised": True}
    report = {
        "selected": "ppo",
        "test": {"ppo": {"judge_win_vs_sft": 0.75, "perplexity": 1.75}},
        "unlike": {"ppo": {"judge_win_vs_sft": 0.625, "kl": 4.5}, "sft": {"kl": 0.0}},
        "tax": {"ppo": {"perplexity": 1.75, "perplexity_change": 0.25}, "sft": {"perplexity": 1.5}},
        "marks": {"ppo": marks, "reward_model": {"accuracy": 0.5, "mark": 0.75}},
    }
    publish_evaluation(client, EvaluationOutput(md5="d" * 32, policies=old.policies, report=report), names)
    found = client.get_run(run_id).data.metrics
    assert {name: value for name, value in found.items() if name.startswith(groups)} == {
        "evaluation/unlike/judge_win_vs_sft": 0.625, "evaluation/unlike/kl": 4.5,
        "evaluation/tax/perplexity": 1.75, "evaluation/tax/perplexity_change": 0.25,
    }  # fmt: skip
    card = client.get_model_version("policy", "2").description
    assert "perplexity on held-out demonstrations: 1.75, sft 1.5" in card
    assert "- KL of ppo 4 nats per response: above the band 0.5 to 3.5\n- reward of ppo rose" in card
    assert "reward model" not in card.partition("### Marks")[2]
    assert "### Marks" not in client.get_model_version("policy", "1").description


def test_an_evaluation_of_unknown_policies_waits(published: Path) -> None:
    client, names = connect(published), load_registry_config(published)
    unknown = EvaluationOutput(md5="e" * 32, policies={"ppo": "0" * 32 + ".dir"}, report={"selected": "ppo"})
    assert publish_evaluation(client, unknown, names) is None
