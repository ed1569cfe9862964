import json
from pathlib import Path
from typing import Any

import pytest

from flows.outcome import Outcome
from flows.summary import as_markdown, as_text, collect, headline, next_commands, win_rates
from tasks.failures import Failure
from tasks.gate import Decision
from tasks.publish import PublishReport
from tasks.stage import StageResult
from tasks.timings import write_timing

EVALUATION: dict[str, Any] = {
    "selected": "ppo",
    "dev": {"ppo": {"gold_win_vs_sft": 0.9}},
    "test": {
        "sft": {"kl": 0.0},
        "ppo": {
            "gold_win_vs_sft": 0.836, "gold_win_low": 0.803, "gold_win_high": 0.869, "judge_win_vs_sft": 0.8,
            "judge_win_low": None, "judge_win_high": None, "kl": 2.7,
        },
    },
}  # fmt: skip


def write(root: Path, stage: str, metrics: dict[str, Any]) -> None:
    path = root / "data" / "metrics" / f"{stage}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(metrics))


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    write(tmp_path, "reward", {"train": {"accuracy": 0.99}, "test": {"accuracy": 0.85}})
    write(tmp_path, "evaluate", EVALUATION)
    write_timing(tmp_path, "sft", seconds=70.0, peak_mb=800.0)
    return Outcome(
        order=("sft", "reward", "evaluate"),
        results={
            "sft": StageResult(name="sft", status="cached", seconds=0.0, peak_mb=0.0),
            "reward": StageResult(name="reward", status="run", seconds=33.333, peak_mb=901.6),
            "evaluate": StageResult(name="evaluate", status="run", seconds=20.0, peak_mb=700.0),
        },
        published=PublishReport(published=["reward"], unchanged=["sft"], waiting=None),
        decision=Decision(verdict=None, move=None, sentence="policy/3 is the champion already"),
        champion="policy/3",
        commit="c" * 40,
    )


def test_the_document(tmp_path: Path, outcome: Outcome) -> None:
    document = collect(tmp_path, outcome)
    sft, reward, evaluate = document["stages"]
    assert sft == {
        "name": "sft", "status": "cached", "seconds": 0.0, "peak_mb": None, "last_run_seconds": 70.0, "metric": None,
        "error": None,
    }  # fmt: skip
    assert (reward["seconds"], reward["peak_mb"]) == (33.3, 902)
    assert reward["metric"] == {"name": "test.accuracy", "value": 0.85}
    assert evaluate["metric"] == {"name": "ppo gold_win_vs_sft", "value": 0.836}
    assert document["win_rates"]["ppo"]["gold_win_low"] == 0.803
    assert "judge_win_low" not in document["win_rates"]["ppo"]
    assert document["champion"] == "policy/3"
    assert document["exit_code"] == 0
    assert len(document["next"]) == 3
    json.dumps(document)


def test_the_text(tmp_path: Path, outcome: Outcome) -> None:
    text = as_text(collect(tmp_path, outcome))
    assert "ppo, by gold" in text
    assert "0.803 to 0.869" in text
    assert "champion: policy/3" in text
    assert "ratchet chat policy@champion" in text
    assert "published: reward" in text


def test_the_artifact_shows_the_newest_samples(tmp_path: Path, outcome: Outcome) -> None:
    folder = tmp_path / "data" / "samples"
    folder.mkdir(parents=True)
    prompt = [{"role": "user", "content": "where | is\nit?"}]
    rows = [{"step": step, "prompt": prompt, "response": f"after {step} " + "x" * 300} for step in (1, 2)]
    (folder / "ppo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = as_markdown(collect(tmp_path, outcome), tmp_path)
    assert "| ppo | 2 | where \\| is it? | after 2 xxx" in text
    assert "after 1" not in text
    assert max(map(len, text.splitlines())) < 500


def test_verdicts_and_advice_reach_every_form(tmp_path: Path, outcome: Outcome) -> None:
    block = {"ppo": {"kl": 2.6, "kl_low": 0.5, "kl_high": 3.5, "over_optimised": 0.0}}
    write(tmp_path, "evaluate", {**EVALUATION, "marks": block})
    write(tmp_path, "sft", {"skipped_updates": 2})
    (tmp_path / "params.yaml").write_text("ppo: {gamma: 0.5}\n")
    document = collect(tmp_path, outcome)
    assert [mark["name"] for mark in document["marks"]] == ["ppo.kl", "ppo.over_optimised", "skipped"]
    assert [advice["key"] for advice in document["advice"]] == ["ppo.gamma"]
    json.dumps(document)
    sentences = [mark["sentence"] for mark in document["marks"]]
    assert sentences[0] == "KL of ppo 2.6 nats per response: inside the band 0.5 to 3.5"
    assert "\n".join(sentences) in as_text(document)
    artifact = as_markdown(document, tmp_path)
    assert "\n".join(f"- {sentence}" for sentence in sentences) in artifact
    assert "- ppo.gamma is 0.5, below the 0.99 to 1 recommended" in artifact


def test_numbers_of_a_stage_that_this_run_did_not_reach_are_not_judged(tmp_path: Path, outcome: Outcome) -> None:
    write(tmp_path, "evaluate", {"marks": {"ppo": {"over_optimised": 1.0}}})
    del outcome.results["evaluate"]
    assert [mark["name"] for mark in collect(tmp_path, outcome)["marks"]] == []


def test_settings_that_were_spoilt_during_the_run_do_not_spoil_its_report(tmp_path: Path, outcome: Outcome) -> None:
    (tmp_path / "params.yaml").write_text("ppo: [\n")
    assert collect(tmp_path, outcome)["advice"] == []


def test_a_failure_is_told_with_what_was_not_reached(tmp_path: Path) -> None:
    failure = Failure(stage="sft", exit_code=2, sentence="data: empty", kind="bad_input")
    outcome = Outcome(order=("sft", "reward"), failures={"sft": failure})
    document = collect(tmp_path, outcome)
    assert [stage["status"] for stage in document["stages"]] == ["failed", "not reached"]
    assert document["exit_code"] == 2
    assert "sft: data: empty" in as_text(document)
    assert document["next"][0] == "ratchet run"


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(), 0),
        (Outcome(stopped_by=2), 130),
        (Outcome(publish_error="broken"), 1),
        (Outcome(gate_error="broken"), 1),
        (Outcome(published=PublishReport(published=[], unchanged=[], waiting="MLflow is down")), 0),
    ],
)
def test_exit_codes(outcome: Outcome, code: int) -> None:
    assert outcome.exit_code == code


def test_what_waits_is_said(tmp_path: Path) -> None:
    outcome = Outcome(published=PublishReport(published=[], unchanged=[], waiting="MLflow is down"))
    document = collect(tmp_path, outcome)
    assert "not published yet: MLflow is down" in as_text(document)
    assert "ratchet publish" in next_commands(document)


def test_headlines() -> None:
    assert headline({"records": {"rows": 12}}) == ("records.rows", 12.0)
    assert headline({"odd": {"number": 1.5}, "text": "x", "truth": True}) == ("odd.number", 1.5)
    assert headline({}) is None


def test_a_run_that_did_not_evaluate_shows_no_win_rates_of_the_past(tmp_path: Path, outcome: Outcome) -> None:
    del outcome.results["evaluate"]
    document = collect(tmp_path, outcome)
    assert document["win_rates"] == {}
    assert "win rate" not in as_text(document)


def test_no_evaluation_no_win_rates(tmp_path: Path) -> None:
    assert win_rates(tmp_path) == {}
    write(tmp_path, "evaluate", {"test": 3})
    assert win_rates(tmp_path) == {}
