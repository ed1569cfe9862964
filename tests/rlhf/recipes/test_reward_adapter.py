"""A reward model that is trained by an adapter: a plain model in the end, whose other weights are the policy's."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from rlhf.reward_model import RewardModel
from tests.rlhf.recipes.tiny_reward import CONFIG, run, write_inputs


def test_it_learns_beside_frozen_weights_and_is_written_whole_and_alone(tmp_path):
    inputs = write_inputs(tmp_path)
    report = run(dataclasses.replace(CONFIG, epochs=3, lora_rank=4), tmp_path / "out", inputs)
    assert report["test"]["accuracy"] > 0.9
    start, end = (load_file(tmp_path / name / "model.safetensors") for name in ("sft", "out/model"))
    shared = [name for name in end if name in start]
    moved = {name for name in shared if not torch.equal(start[name], end[name])}
    assert "model.layers.0.self_attn.q_proj.weight" in moved
    assert not any("embed" in name or "norm" in name for name in moved)
    std = RewardModel.load(tmp_path / "out" / "model", device="cpu").std
    assert std == pytest.approx(report["normaliser"]["std"], rel=1e-5)
    adapter = load_file(tmp_path / "out" / "model" / "adapter" / "adapter_model.safetensors")
    assert any("score.weight" in name for name in adapter)
    assert sum("lora_A" in name for name in adapter) == len(moved)
