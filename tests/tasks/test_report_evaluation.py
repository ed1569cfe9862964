"""Headline, cards, charts and tables of an evaluation."""

from copy import deepcopy
from pathlib import Path

from tasks.report_evaluation import cards, headline, results, trust
from tests.tasks.report_project import EVALUATION


def test_headline_tells_who_won_and_how_surely() -> None:
    assert headline(EVALUATION) == (
        "PPO was chosen on dev prompts. By the judge it wins 80% of 2 test prompts against SFT "
        "(95% interval 70% to 90%)."
    )
    assert headline({}) == "No policy has been evaluated yet."
    alone = {"selected": "sft", "test": {"sft": {"kl": 0.0}}}
    assert headline(alone) == "Only sft was evaluated, on the test prompts; there is nothing to compare it with."


def test_cards_raise_the_alarm_only_when_there_is_one() -> None:
    assert [card["label"] for card in cards(EVALUATION)] == [
        "Method chosen on dev", "Test win rate, judge", "Test win rate, gold rubric", "KL from SFT",
    ]  # fmt: skip
    bad = deepcopy(EVALUATION)
    bad["test"]["ppo"]["over_optimised"] = 1.0
    assert cards(bad)[-1]["label"] == "Alarm"
    assert cards({}) == []


def test_a_win_rate_below_one_half_is_marked_bad() -> None:
    bad = deepcopy(EVALUATION)
    bad["test"]["ppo"] |= {"judge_win_low": 0.3, "judge_win_high": 0.4}
    assert [card.get("tone") for card in cards(bad)][1] == "bad"


def test_results_have_a_row_per_metric_and_a_dash_for_nothing(tmp_path: Path) -> None:
    found = results(EVALUATION, tmp_path / "none.csv")
    assert found is not None
    assert found["policies"] == ["sft", "ppo", "dpo", "sft_again"]
    rows = {row["name"]: row["cells"] for row in found["rows"]}
    assert rows["Win rate against SFT, judge"][1] == "0.800 (0.700 to 0.900)"
    assert rows["Gold rubric, points"] == ["\N{EN DASH}", "7.25", "\N{EN DASH}", "\N{EN DASH}"]
    assert found["note"].endswith("Head to head by the judge: ppo against dpo 55.0% (50.0% to 60.0%).")
    assert [chart["title"] for chart in found["charts"]] == ["Win rate against SFT"]
    assert results({}, tmp_path) is None


def test_trust_shows_both_scorers() -> None:
    found = trust(EVALUATION)
    assert found is not None
    assert {"name": "Accuracy against annotators", "cells": ["0.775", "0.75"]} in found["rows"]
    assert len(found["charts"]) == 2
    assert trust({}) is None
