"""The reward model on two-layer models: it learns, it is normalised, it resumes to the same bytes."""

import csv
import dataclasses
import json

import pytest
import torch

from rlhf import reward_training
from rlhf.checkpoint import KEY_VARIABLE, Checkpoints
from rlhf.errors import BadInput
from rlhf.evaluation.judging import Scorer
from rlhf.reward_model import RewardModel
from tests.rlhf.recipes.tiny_reward import CONFIG, Killed, fingerprint, ordered, pair, run, write, write_inputs


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("pooling", ["sum", "mean", "last"])
def test_it_learns_what_is_preferred(inputs, tmp_path, pooling):
    scale = 0.125 if pooling == "sum" else 1.0
    metrics = run(dataclasses.replace(CONFIG, pooling=pooling, scale=scale), tmp_path, inputs)

    rows = list(csv.DictReader((tmp_path / "reward.csv").read_text().splitlines()))
    assert metrics["updates"] == 30
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])
    assert metrics["test"]["accuracy"] == 1.0
    assert metrics["probes"] == {"rude": 1.0}
    assert metrics["test"]["margin"] > 0
    assert metrics["train"]["pairs"] == 48


def test_answers_of_the_policy_score_zero_on_average_with_unit_spread(inputs, tmp_path, monkeypatch):
    seen = []
    score_ids = Scorer.score_ids

    def watched(self, prompts, responses):
        scores = score_ids(self, prompts, responses)
        seen.append((prompts, responses, scores))
        return scores

    monkeypatch.setattr(Scorer, "score_ids", watched)
    metrics = run(dataclasses.replace(CONFIG, epochs=1), tmp_path, inputs)
    # the reference answers are the only call with as many responses as normalise_samples
    prompts, responses, raw = next(call for call in seen if len(call[1]) == 24)
    model = RewardModel.load(tmp_path / "model", device="cpu")
    assert model.mean == pytest.approx(metrics["normaliser"]["mean"], rel=1e-5)
    scores = torch.tensor([(value - model.mean) / model.std for value in raw])
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std()) == pytest.approx(1.0, abs=1e-4)
    assert all(len(response) <= 8 for response in responses)
    assert len({tuple(prompt) for prompt in prompts}) == 7


def test_equal_seeds_give_equal_bytes_and_the_judge_differs_by_its_seed(inputs, tmp_path):
    short = dataclasses.replace(CONFIG, epochs=1)
    for name in ("a", "b"):
        run(short, tmp_path / name, inputs)
    run(short, tmp_path / "judge", inputs, stage="judge", seed=2)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "judge")


def test_micro_batches_do_not_change_the_scores(inputs, tmp_path):
    short = dataclasses.replace(CONFIG, epochs=1)
    whole = run(short, tmp_path / "whole", inputs)
    parts = run(dataclasses.replace(short, micro_batch=3), tmp_path / "parts", inputs)
    for name in ("loss", "accuracy", "margin"):
        assert parts["train"][name] == pytest.approx(whole["train"][name], rel=1e-3)


def test_an_interrupted_run_ends_with_the_same_bytes(inputs, tmp_path, monkeypatch):
    short = dataclasses.replace(CONFIG, epochs=2)
    monkeypatch.setattr(reward_training, "CURVE_ROWS", 4)  # a mean over 3 steps, and the kill falls between
    monkeypatch.chdir(tmp_path)
    run(short, tmp_path / "straight", inputs)

    monkeypatch.setenv(KEY_VARIABLE, "k")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    save = Checkpoints.save

    def save_then_die(self, step, state):
        save(self, step, state)
        if step == 5:
            raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(Checkpoints, "save", save_then_die)
        with pytest.raises(Killed):
            run(short, tmp_path / "resumed", inputs)
    run(short, tmp_path / "resumed", inputs)
    assert fingerprint(tmp_path / "straight") == fingerprint(tmp_path / "resumed")


def test_the_rubric_never_reaches_the_loss(inputs, tmp_path):
    facts = {"intent": "late", "name": "Maya", "item": "mug", "order": "203", "action": "track", "days": 4}
    rows = [json.loads(line) for line in (inputs["pairs"] / "train.jsonl").read_text().splitlines()]
    told = write(tmp_path / "told", train=[{**row, "meta": facts} for row in rows])
    short = dataclasses.replace(CONFIG, epochs=1)
    run(short, tmp_path / "blind", {**inputs, "pairs": write(tmp_path / "plain", train=rows)})
    run(short, tmp_path / "seeing", {**inputs, "pairs": told})
    assert fingerprint(tmp_path / "blind") == fingerprint(tmp_path / "seeing")


def test_no_prompts_of_their_own_fall_back_to_those_of_the_pairs(inputs, tmp_path):
    nothing = write(tmp_path / "prompts")
    metrics = run(dataclasses.replace(CONFIG, epochs=1), tmp_path, {**inputs, "prompts": nothing})
    assert metrics["normaliser"]["std"] > 0


def test_no_pairs_are_bad_input(inputs, tmp_path):
    with pytest.raises(BadInput, match="0 pairs, of which none fits"):
        run(CONFIG, tmp_path, {**inputs, "pairs": write(tmp_path / "none")})


def test_max_pairs_limits_the_training(inputs, tmp_path):
    assert run(dataclasses.replace(CONFIG, epochs=1, max_pairs=16), tmp_path, inputs)["updates"] == 2


@pytest.mark.parametrize("kind", ["pairs", "plackett_luce"])
def test_rankings_alone_are_enough_to_learn_from(inputs, tmp_path, kind):
    rows = [ordered(number) for number in range(24)]
    paths = {"pairs": write(tmp_path / "pairs", test=[pair(number) for number in range(9)]),
             "rankings": write(tmp_path / "rankings", train=rows, test=rows[:5])}  # fmt: skip
    nothing = write(tmp_path / "prompts")
    config = dataclasses.replace(CONFIG, ranking_loss=kind, micro_batch=3, swap_weight=0.0)
    metrics = run(config, tmp_path, {**inputs, **paths, "prompts": nothing})
    assert metrics["updates"] == 15
    assert metrics["rankings"] == {"test": {"rankings": 5, "accuracy": 1.0}}
    assert metrics["test"]["accuracy"] == 1.0


def test_pairs_that_validate_took_from_a_ranking_do_not_count_twice(inputs, tmp_path):
    rows = [ordered(number, id=f"r{number}") for number in range(8)]
    taken = [pair(number, ranking=f"r{number}") for number in range(8)]
    short = dataclasses.replace(CONFIG, epochs=1, swap_weight=0.0)
    rankings = {"rankings": write(tmp_path / "rankings", train=rows)}
    for name, pairs in (("both", taken), ("alone", [])):
        folder = write(tmp_path / f"pairs-{name}", train=pairs, test=[pair(1)])
        run(short, tmp_path / name, {**inputs, **rankings, "pairs": folder})
    assert fingerprint(tmp_path / "both") == fingerprint(tmp_path / "alone")


def test_empty_rankings_are_none(inputs, tmp_path):
    short = dataclasses.replace(CONFIG, epochs=1)
    run(short, tmp_path / "absent", inputs)
    run(short, tmp_path / "empty", {**inputs, "rankings": write(tmp_path / "rankings")})
    assert fingerprint(tmp_path / "absent") == fingerprint(tmp_path / "empty")


def test_margins_change_the_model_only_where_scores_are_known(inputs, tmp_path):
    rows = [json.loads(line) for line in (inputs["pairs"] / "train.jsonl").read_text().splitlines()]
    scored = write(tmp_path / "scored", train=[{**row, "score_chosen": 3.0, "score_rejected": 1.0} for row in rows])
    plain = write(tmp_path / "plain", train=rows)
    short = dataclasses.replace(CONFIG, epochs=1)
    wide = dataclasses.replace(short, margin_coef=0.5)
    for name, config, pairs in (("a", short, plain), ("b", wide, plain), ("c", short, scored), ("d", wide, scored)):
        run(config, tmp_path / name, {**inputs, "pairs": pairs})
    weights = [fingerprint(tmp_path / name / "model") for name in "abcd"]
    assert weights[0] == weights[1] == weights[2] != weights[3]


def test_ties_too_wide_for_plackett_luce_are_bad_input(inputs, tmp_path):
    row = ordered(1, responses=[f"Order {n}." for n in range(11)], ranks=[1] * 11, scores=None)
    rankings = write(tmp_path / "rankings", train=[row])
    config = dataclasses.replace(CONFIG, ranking_loss="plackett_luce")
    with pytest.raises(BadInput, match="11 answers on one place, wanted 10 at most; set ranking_loss: pairs"):
        run(config, tmp_path, {**inputs, "rankings": rankings})
