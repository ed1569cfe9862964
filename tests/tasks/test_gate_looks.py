"""The allowance of one champion is spent over all challengers, and every look is on record."""

import json
import multiprocessing
from pathlib import Path

import pytest

from tasks.gate_looks import allowance, read_looks, record_look

ABOUT = {"model": "policy", "opponent": "ppo:aa", "conditions": "c1", "total": 0.05}


def look(root: Path, challenger: str, **changed: object) -> int:
    return record_look(root, challenger=challenger, **{**ABOUT, **changed}).number  # type: ignore[arg-type]


def race(root: Path, name: str) -> None:
    for number in range(10):
        look(root, f"ppo:{name}{number}")


def test_all_looks_together_spend_the_allowance_and_no_more() -> None:
    assert allowance(0.05, 1) == pytest.approx(0.0304, abs=1e-4)
    assert allowance(0.05, 2) == pytest.approx(allowance(0.05, 1) / 4)
    assert sum(allowance(0.05, number) for number in range(1, 100_000)) == pytest.approx(0.05, abs=1e-6)
    assert sum(allowance(0.05, number) for number in range(1, 100_000)) < 0.05


def test_each_new_challenger_is_a_look_and_a_repeated_one_is_none(tmp_path: Path) -> None:
    assert [look(tmp_path, name) for name in ("ppo:1", "ppo:2", "ppo:1", "dpo:1")] == [1, 2, 1, 3]
    # Other prompts are another look; so nobody redraws prompts until they please.
    assert look(tmp_path, "ppo:1", conditions="c2") == 4
    # Another champion or another registered model has an allowance of its own.
    assert look(tmp_path, "ppo:1", opponent="ppo:bb") == 1
    assert look(tmp_path, "ppo:9", model="team-policy") == 1
    assert len(read_looks(tmp_path)) == 6
    first = read_looks(tmp_path)[0]
    assert (first.number, first.challenger, first.opponent) == (1, "ppo:1", "ppo:aa")
    assert first.error == pytest.approx(allowance(0.05, 1))


def test_a_torn_or_strange_line_costs_nothing_and_swallows_nothing(tmp_path: Path) -> None:
    look(tmp_path, "ppo:1")
    path = tmp_path / ".ratchet/state/gate.jsonl"
    with path.open("a") as stream:
        stream.write('[1]\n{"number": 7}\n{"model": "pol')
    assert look(tmp_path, "ppo:2") == 2
    assert [found.number for found in read_looks(tmp_path)] == [1, 2]
    assert json.loads(path.read_text().splitlines()[-1])["challenger"] == "ppo:2"


def test_a_lost_line_does_not_give_the_number_again(tmp_path: Path) -> None:
    for name in ("ppo:1", "ppo:2", "ppo:3"):
        look(tmp_path, name)
    path = tmp_path / ".ratchet/state/gate.jsonl"
    path.write_text(path.read_text().splitlines()[-1] + "\n")
    assert look(tmp_path, "ppo:4") == 4


def test_looks_taken_at_once_get_different_numbers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=race, args=(tmp_path, name)) for name in "abc"]
    for process in several:
        process.start()
    for process in several:
        process.join()
        assert process.exitcode == 0
    assert sorted(found.number for found in read_looks(tmp_path)) == list(range(1, 31))
