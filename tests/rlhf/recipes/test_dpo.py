"""DPO on a two-layer model: it starts at ln 2, it learns the order of the pairs, and it resumes to the same bytes."""

import csv
import dataclasses
import json
import math

import pytest

from rlhf.checkpoint import Checkpoints
from rlhf.errors import BadInput
from rlhf.monitor import Monitor
from rlhf.recipes import dpo
from tests.rlhf.recipes import tiny_models as tiny

CONFIG = dpo.Config(
    beta=0.1,
    label_smoothing=0.0,
    learning_rate=5e-3,
    batch_size=8,
    micro_batch=None,
    epochs=2.0,
    warmup_fraction=0.1,
    final_lr_fraction=0.0,
    max_grad_norm=1.0,
    max_tokens=40,
    max_pairs=None,
    max_new_tokens=6,
    sample_every=4,
    precision="float32",
)


def pair(number, chosen, rejected, label=1.0):
    prompt = [{"role": "user", "content": "tree " + "bhs"[number % 3] * (number % 4)}]
    return {"id": str(number), "prompt": prompt, "chosen": chosen, "rejected": rejected, "label": label}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    good, bad = ["ee", "see", "tree", "e"], ["b", "hr", "st", "bb"]
    rows = [pair(n, good[n % 4], bad[(n + n // 4) % 4]) for n in range(32)]
    tie, long = pair(40, "e", "b", 0.5), pair(41, "h" * 50, "b")
    tiny.write_rows(folder / "pairs/train.jsonl", [*rows, tie, long])
    tiny.write_rows(folder / "pairs/dev.jsonl", rows[:6])
    tiny.write_rows(folder / "pairs/test.jsonl", rows[6:9])
    return {
        "pairs": folder / "pairs",
        "prompts": tiny.write_prompts(folder / "prompts"),
        "sft": tiny.write_sft(folder / "sft"),
    }


def run(inputs, out, **changes):
    outputs = {
        "model": out / "dpo", "metrics": out / "dpo.json", "curves": out / "dpo.csv", "samples": out / "samples.jsonl",
    }  # fmt: skip
    dpo.main(dataclasses.replace(CONFIG, **changes), seed=1, stage="dpo", **inputs, **outputs)
    with outputs["curves"].open() as stream:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
    return rows, outputs


def test_it_starts_at_the_logarithm_of_two_and_learns_the_order(inputs, tmp_path):
    rows, outputs = run(inputs, tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert rows[-1]["loss"] < 0.67
    assert rows[-1]["dev_accuracy"] > 0.8
    assert rows[-1]["chosen_reward"] > rows[-1]["rejected_reward"]
    # 32 pairs in batches of 8, twice
    assert [row["step"] for row in rows] == list(range(1, 9))
    metrics = json.loads(outputs["metrics"].read_text())
    assert [metrics["train"][name] for name in ("pairs", "ties", "too_long")] == [32, 1, 1]
    assert metrics["dev"]["accuracy"] == pytest.approx(rows[-1]["dev_accuracy"])
    assert metrics["test"]["pairs"] == 3
    assert metrics["updates"] == 8
    assert (outputs["model"] / "model.safetensors").is_file()
    shown = [json.loads(line) for line in outputs["samples"].read_text().splitlines()]
    assert [row["step"] for row in shown] == [4, 4, 8, 8]


def test_smoothed_and_soft_labels_still_start_at_the_logarithm_of_two(inputs, tmp_path):
    rows, _ = run(inputs, tmp_path, label_smoothing=0.2, epochs=0.5)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_micro_batches_change_nothing_but_rounding(inputs, tmp_path):
    whole, _ = run(inputs, tmp_path / "a", epochs=1.0)
    cut, _ = run(inputs, tmp_path / "b", epochs=1.0, micro_batch=3)
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_a_run_that_was_killed_ends_with_the_bytes_of_one_that_was_not(inputs, tmp_path, monkeypatch):
    run(inputs, tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_KEY", "feed")
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    log = Monitor.log

    def die_at_six(self, step, **metrics):
        if step == 6:
            raise KeyboardInterrupt
        log(self, step, **metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "log", die_at_six)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "resumed")
    run(inputs, tmp_path / "resumed")
    assert tiny.tree(tmp_path / "resumed") == tiny.tree(tmp_path / "whole")


def test_without_a_usable_pair_the_stage_refuses(inputs, tmp_path):
    with pytest.raises(BadInput, match="nothing to learn from"):
        run(inputs, tmp_path, max_tokens=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 0.0), ("label_smoothing", 0.5), ("label_smoothing", -0.1), ("learning_rate", 0.0), ("batch_size", 0),
        ("micro_batch", 0), ("epochs", 0.0), ("warmup_fraction", 1.0), ("final_lr_fraction", 2.0),
        ("max_grad_norm", -1.0), ("max_tokens", 0), ("max_pairs", 0), ("max_new_tokens", 0), ("sample_every", 0),
        ("precision", "int8"),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})
