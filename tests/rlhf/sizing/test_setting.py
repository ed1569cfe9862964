import dataclasses

import pytest

from rlhf.sizing.published import PUBLISHED
from rlhf.sizing.setting import OF_METHOD, STAGES, Setting, roles, setting_of

SHAPE = PUBLISHED["LLaMA-7B"]


def names(setting: Setting) -> list[str]:
    return [role.name for role in roles(setting)]


def test_every_method_has_its_models() -> None:
    assert set(OF_METHOD) == set(STAGES)
    assert names(setting_of("sft", SHAPE)) == names(setting_of("dpo", SHAPE)) == ["policy"]
    assert names(setting_of("ppo", SHAPE)) == ["policy", "value model", "reference", "reward model"]
    assert names(setting_of("grpo", SHAPE)) == ["policy", "reference", "reward model"]
    assert names(setting_of("reward", SHAPE)) == ["reward model", "policy"]


def test_an_adapter_is_the_reference_too_and_trains_little() -> None:
    setting = setting_of("ppo", SHAPE, lora_rank=8, value_lora_rank=8)
    assert names(setting) == ["policy", "value model", "reward model"]
    assert all(role.adapted for role in roles(setting)[:2])
    assert names(setting_of("ppo", SHAPE, lora_rank=8, reference="frozen"))[2] == "reference"


def test_one_gpu_splits_and_offloads_nothing() -> None:
    alone = setting_of("sft", SHAPE, zero_stage=3, offload="parameters")
    assert (alone.zero, alone.moved) == (0, "none")
    both = dataclasses.replace(alone, gpus=2)
    assert (both.zero, both.moved) == (3, "parameters")


def test_passes_are_what_is_left_of_the_batch_on_one_gpu() -> None:
    setting = setting_of("dpo", SHAPE, gpus=4, batch=64, micro_batch=3)
    assert (setting.share, setting.passes, setting.rows) == (16, 6, 6.0)  # pairs; ceil(16 / 3); 3 pairs are 6 rows


@pytest.mark.parametrize(
    "wrong",
    [{"zero_stage": 4}, {"offload": "parameters"}, {"reference": "adapter_off"}, {"gpus": 0}, {"precision": "int8"},
     {"memory": 0}, {"value_model": "two"}],
)  # fmt: skip
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        setting_of("ppo", SHAPE, **wrong)
