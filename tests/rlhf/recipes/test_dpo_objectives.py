"""The presets and variants of the stage `dpo` on a two-layer model."""

import json
import math
from pathlib import Path

import pytest
import torch

from rlhf.checkpoint import Checkpoints
from rlhf.config import load_section, read_params
from rlhf.errors import BadInput
from rlhf.models import load_policy
from rlhf.recipes import dpo
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_dpo import CONFIG, pair, run, write_inputs, write_split

PROFILES = Path(__file__).parents[3] / "profiles"
METHOD = (
    "objective", "beta", "label_smoothing", "length_normalised", "reference_free", "nll_coef", "desirable_weight",
    "undesirable_weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("name", ["cdpo", "ipo", "dpo-length-normalised", "dpo-reference-free", "dpo-nll", "kto"])
def test_each_preset_learns_the_order(inputs, tmp_path, name):
    section = read_params(PROFILES / "default.yaml")["dpo"] | read_params(PROFILES / f"algorithms/{name}.yaml")["dpo"]
    config = load_section({"dpo": section}, "dpo", dpo.Config)
    method = {field: getattr(config, field) for field in METHOD}
    assert method != {field: getattr(CONFIG, field) for field in METHOD}  # a preset that sets nothing would be DPO
    rows, outputs = run(inputs, tmp_path, **method)
    assert rows[-1]["loss"] < rows[0]["loss"]
    margins = [row["dev_margin"] for row in rows if "dev_margin" in row]
    assert margins[-1] > margins[0]
    # Without a reference the longer answers start far behind, and eight updates do not turn that round.
    assert name == "dpo-reference-free" or rows[-1]["dev_accuracy"] > 0.8
    assert (outputs["model"] / "model.safetensors").is_file()
    sides = ("desirable", "undesirable") if name == "kto" else ("chosen", "rejected")
    for side in sides:
        assert f"{side}_logprob" in rows[-1]
        assert (f"{side}_change" in rows[-1]) == (name != "dpo-reference-free")


def test_the_nll_term_keeps_the_chosen_answers_likely(inputs, tmp_path):
    plain, _ = run(inputs, tmp_path / "a")
    kept, _ = run(inputs, tmp_path / "b", nll_coef=1.0)
    assert kept[0]["loss"] == pytest.approx(plain[0]["loss"] + kept[0]["nll"], rel=1e-5)
    assert kept[-1]["dev_chosen_change"] > plain[-1]["dev_chosen_change"]


def test_ipo_starts_at_the_square_of_its_target_and_a_length_normalised_gap_is_smaller(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path / "a", objective="ipo", epochs=0.25)
    # 1 / (2 * 0.1), squared
    assert rows[0]["loss"] == pytest.approx(25.0, rel=1e-4)
    sums, _ = run(inputs, tmp_path / "b", reference_free=True, epochs=0.25)
    means, _ = run(inputs, tmp_path / "c", reference_free=True, length_normalised=True, epochs=0.25)
    assert sums[0]["chosen_reward"] == pytest.approx(0.1 * sums[0]["chosen_logprob"], rel=1e-5)
    # Answers of 2 to 5 tokens, the end token included.
    assert sums[0]["chosen_reward"] < means[0]["chosen_reward"] < sums[0]["chosen_reward"] / 5


def test_an_adapter_is_trained_in_place_of_the_weights_and_saved_inside_them(inputs, tmp_path):
    rows, outputs = run(inputs, tmp_path / "a", lora_rank=4, learning_rate=2e-2)
    # B is zero at the start and the reference is the base model: no pair has a margin yet.
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["dev_accuracy"] > 0.8
    before, after = (load_policy(folder, device="cpu").state_dict() for folder in (inputs["sft"], outputs["model"]))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("proj" in name for name in moved)
    run(inputs, tmp_path / "b", lora_rank=4, learning_rate=2e-2)
    assert tiny.tree(tmp_path / "a") == tiny.tree(tmp_path / "b")


@pytest.mark.parametrize(("objective", "normalised"), [("dpo", False), ("dpo", True), ("ipo", True), ("kto", False)])
def test_empty_and_equal_answers_and_a_side_beyond_the_context_are_no_accident(inputs, tmp_path, objective, normalised):
    # An empty answer is its end token; two equal ones pull nowhere; one beyond the 64 places of the model is left out.
    rows = [pair(0, "", "b"), pair(1, "e", ""), pair(2, "see", "see"), pair(3, "h" * 70, "b"), pair(4, "e", "b")]
    changed = {**inputs, "pairs": write_split(tmp_path, "pairs", rows, rows[:3])}
    found, outputs = run(changed, tmp_path, objective=objective, length_normalised=normalised, max_tokens=500)
    assert all(math.isfinite(value) for row in found for value in row.values())
    metrics = json.loads(outputs["metrics"].read_text())
    assert [metrics["train"][name] for name in ("pairs", "too_long")] == [4, 1]
    assert metrics["skipped_updates"] == 0
    weights = load_policy(outputs["model"], device="cpu").state_dict()
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())


def test_kto_reads_judgements_and_pairs_and_starts_at_half(inputs, tmp_path):
    single = [
        {"id": f"j{n}", "prompt": [{"role": "user", "content": "hs" * n}], "response": "eb"[n % 2], "good": n % 2 == 0}
        for n in range(6)
    ]
    long = {**single[0], "id": "long", "response": "h" * 60}
    changed = {**inputs, "judgements": write_split(tmp_path, "judgements", [*single, long], single[:2])}
    rows, outputs = run(changed, tmp_path, objective="kto")
    counts = json.loads(outputs["metrics"].read_text())["train"]
    # The 6 that fit and both sides of 32 pairs; one judgement and one pair are too long.
    wanted = {"pairs": 32, "ties": 1, "judgements": 6, "desirable": 35, "undesirable": 35, "too_long": 2}
    assert {name: counts[name] for name in wanted} == wanted
    # Equal to its reference every answer is at its reference point: sigma(0) = 1/2.
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert rows[0]["z0"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["desirable_reward"] > rows[-1]["undesirable_reward"]
    assert rows[-1]["desirable_change"] == pytest.approx(rows[-1]["desirable_reward"] / 0.1, rel=1e-3)
    assert all(row["z0"] >= 0 for row in rows)


def test_kto_in_micro_batches_changes_nothing_but_rounding(inputs, tmp_path):
    whole, _ = run(inputs, tmp_path / "a", epochs=1.0, objective="kto")
    cut, _ = run(inputs, tmp_path / "b", epochs=1.0, objective="kto", micro_batch=3)
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_kto_refuses_one_class_only(inputs, tmp_path):
    row = {"prompt": [{"role": "user", "content": "tree"}], "response": "e", "good": True}
    judgements = write_split(tmp_path, "judgements", [{**row, "id": str(n)} for n in range(4)])
    changed = {**inputs, "pairs": write_split(tmp_path, "pairs", ()), "judgements": judgements}
    with pytest.raises(BadInput, match="all 4 judgements are desirable; kto needs both kinds, so add undesirable"):
        run(changed, tmp_path, objective="kto")
    with pytest.raises(BadInput, match="nothing to learn from"):
        run(changed, tmp_path, objective="kto", max_tokens=3)


@pytest.mark.parametrize("objective", ["kto", "ipo"])
def test_any_objective_resumes_to_the_same_bytes(inputs, tmp_path, monkeypatch, objective):
    run(inputs, tmp_path / "whole", objective=objective, epochs=1.0, lora_rank=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_KEY", "feed")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    save = Checkpoints.save

    def die_at_three(self, step, state):
        save(self, step, state)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", die_at_three)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "resumed", objective=objective, epochs=1.0, lora_rank=2)
    run(inputs, tmp_path / "resumed", objective=objective, epochs=1.0, lora_rank=2)
    assert tiny.tree(tmp_path / "resumed") == tiny.tree(tmp_path / "whole")
