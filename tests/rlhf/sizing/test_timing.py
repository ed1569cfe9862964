import dataclasses

import pytest

from rlhf.errors import BadInput
from rlhf.sizing.published import PUBLISHED
from rlhf.sizing.setting import setting_of
from rlhf.sizing.timing import GPUS, gpu_of, timing, training_operations

SHAPE = PUBLISHED["LLaMA-7B"]
A100 = GPUS["A100"]


def test_training_takes_six_operations_for_each_weight_and_token() -> None:
    setting = setting_of("sft", SHAPE, batch=1, prompt_tokens=0, response_tokens=100)
    weights = SHAPE.matrices + SHAPE.head
    attention = 3 * 2 * 100 * 4096 * 32  # 2 s a for each block
    assert training_operations(setting) == 100 * (6 * weights + attention)
    again = dataclasses.replace(setting, activation_checkpointing=True)
    assert training_operations(again) == pytest.approx(4 / 3 * training_operations(setting))
    adapted = dataclasses.replace(setting, lora_rank=8)
    assert training_operations(adapted) == pytest.approx(2 / 3 * training_operations(setting))


def test_the_time_is_operations_over_the_assumed_share_of_the_peak() -> None:
    setting = setting_of("sft", SHAPE, batch=4)
    wanted = training_operations(setting) / (0.4 * 312e12)
    assert timing(setting, A100).total == pytest.approx(wanted)
    half = dataclasses.replace(A100, utilisation=0.2)
    assert timing(setting, half).total == pytest.approx(2 * wanted)
    assert timing(setting, A100).per_element == pytest.approx(wanted / 4)


def test_sampling_a_few_rows_is_bound_by_reading_the_weights() -> None:
    setting = setting_of("ppo", SHAPE, rollouts=1, batch=1, prompt_tokens=0, response_tokens=100, epochs=1)
    floor = 100 * 2 * (SHAPE.matrices + SHAPE.head) / (0.5 * 2.04e12)
    assert timing(setting, A100).parts["sampling"] == pytest.approx(floor, rel=0.02)


def test_exchange_and_offload_cost_time_on_several_gpus_only() -> None:
    alone = timing(setting_of("sft", SHAPE), A100)
    assert alone.parts["exchange"] == alone.parts["offload"] == 0
    both = setting_of("sft", SHAPE, gpus=2, zero_stage=3, offload="optimizer")
    assert timing(both, A100).parts["exchange"] > 0
    assert timing(both, A100).parts["offload"] > 0


def test_gpus_are_found_by_name() -> None:
    assert gpu_of("h100").memory == 80e9
    with pytest.raises(BadInput, match="A100"):
        gpu_of("abacus")
