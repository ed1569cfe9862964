"""Ensembles of reward models: what the members are, what is known of them, and that they survive a kill."""

import csv
import dataclasses
import shutil

import pytest
import torch

from rlhf.checkpoint import KEY_VARIABLE, Checkpoints
from rlhf.evaluation.judging import Scorer
from rlhf.recipes import reward
from rlhf.rewards.ensemble import load_ensemble
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes.tiny_reward import CONFIG, Killed, fingerprint, ordered, pair, run, write, write_inputs


@pytest.fixture(autouse=True)
def _settled(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


THREE = dataclasses.replace(CONFIG, epochs=1, members=3, member_share=0.75)


def test_an_ensemble_is_its_first_model_and_others_below_it(inputs, tmp_path):
    (tmp_path / "model" / "member-7").mkdir(parents=True)  # of an earlier run
    whole = dataclasses.replace(THREE, member_share=1.0)
    metrics = run(whole, tmp_path, inputs)
    run(dataclasses.replace(whole, members=1), tmp_path / "alone", inputs)

    alone = fingerprint(tmp_path / "alone" / "model")
    assert {name: mark for name, mark in fingerprint(tmp_path / "model").items() if "member-" not in name} == alone
    assert sorted(path.name for path in (tmp_path / "model").glob("member-*")) == ["member-1", "member-2"]
    marks = [fingerprint(tmp_path / "model" / f"member-{member}")["model.safetensors"] for member in (1, 2)]
    assert len({alone["model.safetensors"], *marks}) == 3

    assert metrics["members"].keys() == {"1", "2"}
    assert metrics["members"]["2"]["test"]["accuracy"] >= 0.5
    assert metrics["ensemble"]["members"] == 3
    assert metrics["ensemble"]["test"]["disagreement"] > 0
    rows = list(csv.DictReader((tmp_path / "reward.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(1, 19))
    assert [row["member"] for row in rows] == ["0"] * 6 + ["1"] * 6 + ["2"] * 6


def test_saved_members_score_as_the_trained_ones_did(inputs, tmp_path, monkeypatch):
    trained = []
    score_held_out = reward.score_held_out

    def watched(scorer, held_out):
        trained.append(score_held_out(scorer, held_out))
        return trained[-1]

    monkeypatch.setattr(reward, "score_held_out", watched)
    margins = dataclasses.replace(THREE, margin_coef=0.5, members=2)
    rows = [ordered(number) for number in range(9)]
    folders = {**inputs, "rankings": write(tmp_path / "rankings", train=rows, test=rows[:3])}
    run(margins, tmp_path, folders)
    test_rows = {split: [pair(number) for number in range(9, 20)] for split in ("train", "dev", "test")}
    for member, model in enumerate(load_ensemble(tmp_path / "model")):
        scorer = Scorer(model=model, tokenizer=load_tokenizer(tmp_path / "model"), batch=64, precision="float32")
        assert scorer.score_pairs(test_rows["test"]) == trained[member].pairs["test"]


def test_a_member_sees_its_share(inputs, tmp_path):
    metrics = run(dataclasses.replace(THREE, members=2), tmp_path, inputs)
    assert [metrics["train"]["pairs"], metrics["members"]["1"]["train"]["pairs"]] == [36, 36]


@pytest.mark.parametrize("step", [3, 6, 9, 13])
def test_an_interrupted_ensemble_ends_with_the_same_bytes(inputs, tmp_path, monkeypatch, step):
    # 5 updates and a mark for each member: killed within the first, at its end, within the second, within the third
    monkeypatch.chdir(tmp_path)
    run(THREE, tmp_path / "straight", inputs)
    monkeypatch.setenv(KEY_VARIABLE, "k")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    save = Checkpoints.save

    def save_then_die(self, at, state):
        save(self, at, state)
        if at == step:
            raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(Checkpoints, "save", save_then_die)
        with pytest.raises(Killed):
            run(THREE, tmp_path / "resumed", inputs)
    shutil.rmtree(tmp_path / "resumed", ignore_errors=True)  # as DVC does before a rerun
    run(THREE, tmp_path / "resumed", inputs)
    assert fingerprint(tmp_path / "straight") == fingerprint(tmp_path / "resumed")
    assert not (tmp_path / ".ratchet/tmp/checkpoints/reward/k").exists()
