import dataclasses

import pytest

from rlhf.sizing.memory import PARTS, estimate
from rlhf.sizing.model_shape import ModelShape
from rlhf.sizing.published import PUBLISHED
from rlhf.sizing.setting import IDEAL, Setting, setting_of

SHAPE = PUBLISHED["LLaMA-7B"]
P = SHAPE.parameters
HEAD = SHAPE.head


def parts(setting: Setting, moment: str = "training") -> dict[str, float]:
    found = {one.name: one.parts for one in estimate(setting, reserve=False).moments}
    return found[moment]


def state(setting: Setting) -> tuple[float, ...]:
    """Weights, gradients and optimizer's state after a backward pass, in bytes for each weight."""
    found = parts(setting, "step" if setting.gpus > 1 else "training")
    return tuple(round(found[name] / P, 3) for name in ("weights", "gradients", "optimizer"))


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [(0, (4, 4, 8)), (1, (4, 4, 3)), (2, (4, 1, 3)), (3, (1 + 3 * round(HEAD / P, 5), 1, 3))],
)
def test_zero_splits_what_it_says_over_four_gpus(stage: int, wanted: tuple[float, ...]) -> None:
    # 4 bytes of weights, 4 of gradients, 8 of moments, with ZeRO 4 more of masters: 12 / 4 = 3 each; ZeRO-3 keeps the
    # output matrix whole on each GPU.
    assert state(setting_of("sft", SHAPE, gpus=4, zero_stage=stage)) == pytest.approx(wanted, abs=2e-3)


def test_one_gpu_has_no_masters() -> None:
    assert state(setting_of("sft", SHAPE, micro_batch=1, batch=4)) == (4, 4, 8)
    eight_bit = setting_of("sft", SHAPE, optimizer="adamw_8bit", batch=4)
    assert state(eight_bit) == (4, 4, 2)


def test_an_adapter_needs_no_state_for_the_weights_below() -> None:
    found = parts(setting_of("dpo", SHAPE, lora_rank=16, gpus=1, batch=4))
    adapter = SHAPE.adapter(16)
    assert found["weights"] == 4 * P + 4 * adapter
    assert (found["gradients"], found["optimizer"]) == (4 * adapter, 8 * adapter)


def test_offload_moves_state_into_the_computer() -> None:
    plain = setting_of("sft", SHAPE, gpus=4, zero_stage=3)
    moved = estimate(dataclasses.replace(plain, offload="optimizer"), reserve=False)
    assert moved.host["optimizer"] == pytest.approx(12 * P)
    assert moved.peak.parts["optimizer"] == moved.peak.parts["gradients"] == 0
    all_moved = estimate(dataclasses.replace(plain, offload="parameters"), reserve=False)
    assert all_moved.host["weights"] == pytest.approx(4 * P)
    assert parts(dataclasses.replace(plain, offload="parameters"))["weights"] == pytest.approx(3 * HEAD)


def test_loading_is_over_when_the_rest_begins() -> None:
    found = estimate(setting_of("sft", SHAPE, gpus=2))
    assert found.host["loading"] == 2 * 4 * P
    assert found.host["checkpoint"] == 12 * P
    assert found.host_total == 2 * 3e9 + 12 * P


def test_four_roles_of_ppo_lie_side_by_side() -> None:
    found = parts(setting_of("ppo", SHAPE))
    assert found["weights"] == 4 * (P + SHAPE.trunk)
    assert found["frozen models"] == 4 * (P + SHAPE.trunk)
    assert parts(setting_of("grpo", SHAPE))["weights"] == 4 * P


def test_zero_3_loads_and_samples_with_whole_weights_unless_the_engine_could_otherwise() -> None:
    setting = setting_of("ppo", SHAPE, gpus=4, zero_stage=3)
    assert parts(setting, "rollout")["gather"] == 4 * P
    assert parts(setting, "loading")["weights"] == 4 * (P + SHAPE.trunk)
    spared = dataclasses.replace(setting, holds=IDEAL)
    assert parts(spared, "rollout")["gather"] == 2 * max(HEAD, SHAPE.hidden * SHAPE.intermediate)
    assert "loading" not in [moment.name for moment in estimate(spared).moments]


def test_copies_to_bf16_stay_but_under_zero_3_and_in_fp32() -> None:
    assert parts(setting_of("sft", SHAPE, batch=4))["bf16 copies"] == 2 * (SHAPE.matrices + HEAD)
    assert parts(setting_of("sft", SHAPE, batch=4, precision="float32"))["bf16 copies"] == 0
    split = parts(setting_of("sft", SHAPE, gpus=2, zero_stage=3))["bf16 copies"]
    assert split == 2 * max(HEAD, SHAPE.hidden * SHAPE.intermediate)


def test_the_reserve_is_two_gigabytes_and_a_tenth_of_what_comes_and_goes() -> None:
    setting = setting_of("sft", SHAPE, batch=4)
    with_reserve, without = estimate(setting).peak, estimate(setting, reserve=False).peak
    passing = sum(without.parts[name] for name in ("bf16 copies", "activations", "logits", "buffers"))
    assert with_reserve.parts["reserve"] == pytest.approx(2e9 + 0.1 * passing)
    assert tuple(with_reserve.parts) == PARTS


@pytest.mark.parametrize(
    "change", [{"gpus": 8}, {"activation_checkpointing": True}, {"micro_batch": 1}, {"zero_stage": 3}]
)
def test_what_saves_memory_saves_memory(change: dict[str, int]) -> None:
    setting = setting_of("dpo", SHAPE, gpus=4, zero_stage=2, micro_batch=4)
    assert parts_sum(dataclasses.replace(setting, **change)) < parts_sum(setting)


def parts_sum(setting: Setting) -> float:
    return sum(parts(setting).values())


def test_fits_is_a_comparison_with_the_gpu() -> None:
    small = ModelShape(
        name="x", hidden=64, layers=2, heads=4, kv_heads=4, head_width=16, intermediate=128, vocabulary=99
    )
    assert estimate(setting_of("ppo", small)).fits
    assert not estimate(setting_of("ppo", small, memory=2e9)).fits
