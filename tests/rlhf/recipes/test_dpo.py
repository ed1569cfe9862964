"""DPO on a two-layer model: it starts at ln 2, it learns the order of the pairs, and it resumes to the same bytes."""

import json
import math

import pytest

from rlhf import pair_objective
from rlhf.checkpoint import Checkpoints
from rlhf.errors import BadInput
from rlhf.monitor import Monitor
from rlhf.recipes import dpo
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_dpo import pair, run, write_inputs, write_split


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


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
    monkeypatch.setattr(dpo, "CURVE_ROWS", 3)  # a mean over 2 steps, and the kill falls between
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


def test_the_cache_of_the_reference_changes_no_byte(inputs, tmp_path, monkeypatch, caplog):
    run(inputs, tmp_path / "without")
    assert not (tmp_path / ".ratchet").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_KEY", "beef")
    run(inputs, tmp_path / "filled")
    files = sorted((tmp_path / ".ratchet/tmp/logprobs").iterdir())
    assert len(files) == 3  # one for each split
    caplog.clear()
    with caplog.at_level("INFO"), monkeypatch.context() as patch:
        patch.setattr(pair_objective, "all_pair_logprobs", None)  # calling it would fail
        run(inputs, tmp_path / "read")
    assert caplog.text.count("are read from") == 3
    assert sorted((tmp_path / ".ratchet/tmp/logprobs").iterdir()) == files
    wanted = tiny.tree(tmp_path / "without")
    assert tiny.tree(tmp_path / "filled") == wanted
    assert tiny.tree(tmp_path / "read") == wanted


def test_ties_alone_are_refused(inputs, tmp_path):
    pairs = write_split(tmp_path, "pairs", [pair(n, "e", "b", 0.5) for n in range(3)])
    with pytest.raises(BadInput, match=r"train.jsonl: nothing to learn from .*'ties': 3.*; add pairs"):
        run({**inputs, "pairs": pairs}, tmp_path)
