"""A short version of the simulation; the long one is `python -m bench.gate_power`."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.gate_power import counted, main
from bench.gate_world import World, always, quality_of, run_of_challengers, spending, win_rule
from rlhf.evaluation.sample_size import power
from tasks.gate_config import Gate
from tasks.gate_looks import allowance
from tasks.registry_config import load_registry_config

TRIALS = 150


@pytest.fixture(scope="module")
def gate(project: Path) -> Gate:
    return load_registry_config(project).gate


def promoted(gate: Gate, world: World, *, looks: int, spend: object = None, quality: float = 0.0) -> int:
    rng = np.random.default_rng(3)
    how = {"looks": looks, "quality": quality}
    spent = spend or spending(gate)
    return sum(run_of_challengers(world, win_rule(gate), spent, rng, **how) > 0 for _ in range(TRIALS))  # type: ignore[arg-type]


def test_equal_challengers_are_seldom_promoted_however_many_there_are(gate: Gate) -> None:
    # Of 150 trials 7.5 at most are to be expected; 18 or more have a chance of 0.06%.
    assert promoted(gate, World(), looks=20) < 18
    assert promoted(gate, World(methods=8), looks=1) < 18


def test_without_spending_or_with_a_choice_on_test_they_are(gate: Gate) -> None:
    assert promoted(gate, World(), looks=20, spend=always(allowance(0.05, 1))) > 30
    on_test = World(methods=8, choose_on="test")
    assert promoted(gate, on_test, looks=20, spend=always(allowance(0.05, 1))) > 60


def test_a_better_challenger_is_found_as_often_as_reckoned(gate: Gate) -> None:
    world = World(prompts=200, dev_prompts=20, methods=1)
    share = promoted(gate, world, looks=1, quality=quality_of(0.6)) / TRIALS
    assert share == pytest.approx(power(200, 0.6, ties=0.0, tail=allowance(0.05, 1)), abs=0.1)


def test_an_interval_comes_with_every_count() -> None:
    row = counted("x", [True, *[False] * 99])
    assert (row["promoted"], row["trials"]) == (1, 100)
    assert row["low"] < 0.01 < row["high"] < 0.06


def test_the_command_fails_when_too_much_is_promoted(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # With 12 trials no interval is narrow enough to vouch for 6.5%, so the command must not say that all is well.
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/registry.yaml").write_text((project / "mlflow/registry.yaml").read_text())
    monkeypatch.setattr(
        sys, "argv", ["gate_power", "--project", str(tmp_path), "--trials", "12", "--out", str(tmp_path)]
    )
    assert main() == 1
    assert "any of 20 challengers in a row, better of 2 on dev" in capsys.readouterr().out
    assert (tmp_path / "gate_power.json").is_file()


def test_ties_change_nothing_for_equal_models(gate: Gate) -> None:
    assert promoted(gate, replace(World(), ties=0.5), looks=1) < 18
