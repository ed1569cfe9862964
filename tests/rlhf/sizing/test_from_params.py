from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from rlhf.config import read_params
from rlhf.errors import BadInput
from rlhf.sizing.from_params import TRAINED, asked_for, read_project, shape_by_name, shape_in
from rlhf.sizing.setting import setting_of

ROOT = Path(__file__).parents[3]
PARAMS = read_params(ROOT / "profiles/default.yaml")


def changed(stage: str, **changes: Any) -> dict[str, Any]:
    return {**PARAMS, stage: {**PARAMS[stage], **changes}}


def test_every_stage_that_trains_can_be_read() -> None:
    shape = shape_in(PARAMS, ROOT)
    for stage in TRAINED:
        setting = setting_of(stage, shape, **asked_for(PARAMS, stage))
        assert setting.micro_batch <= setting.batch, stage
    assert read_project(ROOT).keys() == PARAMS.keys()


def test_the_default_model_is_counted_as_it_was_built() -> None:
    shape = shape_in(PARAMS, ROOT)
    assert (shape.hidden, shape.layers, shape.tied) == (128, 2, True)


def test_the_launch_line_and_the_engine_are_read() -> None:
    engine = {"zero_stage": 3, "offload": "parameters", "activation_checkpointing": True}
    line = "torchrun --nnodes=2 --nproc-per-node=4"
    found = asked_for(changed("dpo", launch=line, engine=engine, batch_size=64, micro_batch=None), "dpo")
    assert (found["gpus"], found["gpus_per_node"], found["micro_batch"]) == (8, 4, 8)
    assert (found["zero_stage"], found["offload"], found["activation_checkpointing"]) == (3, "parameters", True)
    assert asked_for(changed("dpo", launch="deepspeed --num_gpus=2"), "dpo")["gpus"] == 2


def test_policy_gradients_hold_the_models_that_their_settings_ask_for() -> None:
    assert asked_for(PARAMS, "ppo")["value_model"] == "separate"
    groups = changed("ppo", advantage="group_relative", group_size=4, rewards={"format": 1.0})
    found = asked_for(groups, "ppo")
    assert (found["value_model"], found["reward_models"]) == ("none", 0)
    assert asked_for(changed("dpo", objective="kto"), "kto")["sequences"] == 1


def test_what_is_missing_is_named() -> None:
    with pytest.raises(BadInput, match="no section ppo"):
        asked_for({}, "ppo")
    without = {**PARAMS, "sft": {key: value for key, value in PARAMS["sft"].items() if key != "batch_size"}}
    with pytest.raises(BadInput, match=r"missing key sft\.batch_size"):
        asked_for(without, "sft")


def test_models_are_found_in_folders_and_by_name_and_never_on_the_network(tmp_path: Path) -> None:
    folder = tmp_path / "data/base/mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(LlamaConfig(hidden_size=48, num_attention_heads=4).to_json_string())
    params = changed("sft", base_model="mine")
    assert shape_in(params, tmp_path).hidden == 48
    assert shape_by_name(str(folder)).hidden == 48
    assert shape_by_name("owner/Qwen2.5-7B-Instruct").hidden == 3584
    with pytest.raises(BadInput, match="network is not asked"):
        shape_by_name("owner/never-heard-of")
