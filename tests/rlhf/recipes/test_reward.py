"""The reward model on two-layer models: it learns, it is normalised, it resumes to the same bytes."""

import csv
import dataclasses
import hashlib
import json

import pytest
import torch

from rlhf.checkpoint import KEY_VARIABLE, Checkpoints
from rlhf.errors import BadInput
from rlhf.models import save_policy
from rlhf.recipes import reward
from rlhf.reward_model import RewardModel
from rlhf.starting_point import Size, from_scratch

CONFIG = reward.Config(
    pooling="sum",
    scale=0.125,
    learning_rate=1e-2,
    batch_size=8,
    micro_batch=None,
    epochs=5,
    centering=0.01,
    warmup_fraction=0.1,
    final_lr_fraction=0.0,
    max_grad_norm=1.0,
    weight_decay=0.0,
    max_tokens=40,
    max_pairs=None,
    precision="float32",
    swap_weight=0.5,
    swap_share=0.5,
    normalise_samples=24,
    max_new_tokens=8,
)


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


def ask(number):
    return [{"role": "user", "content": f"Order {number % 7}?"}]


def pair(number, **meta):
    sides = {"chosen": f"Thank you, I found order {number % 7}.", "rejected": "Not our problem."}
    # every eighth pair is a tie
    return {"prompt": ask(number), **sides, "label": 0.5 if number % 8 == 0 else 1.0, "meta": meta}


def write(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        rows = splits.get(split, [])
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    rows = [pair(number) for number in range(48)]
    torch.manual_seed(0)
    records = [{"prompt": row["prompt"], "response": row[side]} for row in rows for side in ("chosen", "rejected")]
    tokenizer, policy = from_scratch(records, Size(300, hidden=16, layers=2, heads=2, intermediate=32, context=48))
    save_policy(policy, tokenizer, folder / "sft")
    return {
        "pairs": write(folder / "pairs", train=rows, dev=rows[:9], test=rows[9:20]),
        "probes": write(folder / "probes", test=[pair(number, probe="rude") for number in range(1, 5)]),
        "prompts": write(folder / "prompts", train=[{"prompt": ask(number)} for number in range(7)]),
        "sft": folder / "sft",
    }


def run(config, folder, inputs, stage="reward", seed=1):
    paths = {"model": folder / "model", "metrics": folder / "reward.json", "curves": folder / "reward.csv"}
    reward.main(config, seed=seed, stage=stage, **inputs, **paths)
    return json.loads(paths["metrics"].read_text())


def fingerprint(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


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
    score_ids = reward.Scorer.score_ids

    def watched(self, prompts, responses):
        scores = score_ids(self, prompts, responses)
        seen.append((prompts, responses, scores))
        return scores

    monkeypatch.setattr(reward.Scorer, "score_ids", watched)
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


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def test_an_interrupted_run_ends_with_the_same_bytes(inputs, tmp_path, monkeypatch):
    short = dataclasses.replace(CONFIG, epochs=2)
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling", "max"),
        ("scale", 0.0),
        ("centering", -1.0),
        ("normalise_samples", 1),
        ("swap_weight", -1.0),
        ("swap_share", 1.1),
        ("max_pairs", 0),
        ("weight_decay", -0.1),
        ("learning_rate", float("nan")),
        ("precision", "half"),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match="wanted"):
        dataclasses.replace(CONFIG, **{field: value})
