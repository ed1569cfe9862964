"""Every range warns on both sides, for the sizes it was given for, and the shipped settings keep inside."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.advice import RANGES, Range, warnings
from rlhf.config import read_params

ROOT = Path(__file__).parents[2]
IN_USE: dict[str, Any] = {
    "ppo.value_coef": {"value_model": "shared"},
    "ppo.group_size": {"advantage": "group_relative"},
}
"""Settings of the same section that bring a range into use, where the empty section does not."""


def names(range_: Range) -> str:
    return f"{range_.key} {range_.low:g} to {range_.high:g}"


def section_for(range_: Range) -> dict[str, Any]:
    """The smallest section in which a range counts."""
    candidates: list[dict[str, Any]] = [
        {}, IN_USE.get(range_.key, {}), {"lora_rank": 8}, {"length_normalised": True},
        {"advantage": "leave_one_out"}, {"nll_coef": 0.5},
    ]  # fmt: skip
    return next(section for section in candidates if range_.when(section))


def found(range_: Range, value: float, parameters: int | None) -> list[str]:
    stage, key = range_.key.split(".")
    params = {stage: {**section_for(range_), key: value}}
    return [advice.sentence for advice in warnings(params, parameters) if advice.source == range_.source]


def size_of(range_: Range) -> int:
    return range_.sizes[0] if range_.sizes else 1


@pytest.mark.parametrize("range_", RANGES, ids=names)
def test_each_range_warns_on_both_sides_and_says_why(range_: Range) -> None:
    span = max(range_.high - range_.low, abs(range_.high))
    for value, side, effect in (
        # A number of which 0 means "off" has no smaller value that counts.
        (range_.low / 2 if range_.low else -0.1, "below", range_.below),
        (range_.high + span, "above", range_.above),
    ):
        (sentence,) = found(range_, value, size_of(range_))
        assert sentence.startswith(f"{range_.key} is ")
        assert f", {side} the " in sentence
        assert range_.source in sentence
        assert sentence.endswith(f": {effect}")
        assert "for models of " in sentence
    for value in (range_.low, (range_.low + range_.high) / 2, range_.high):
        assert found(range_, value, size_of(range_)) == []


@pytest.mark.parametrize("range_", [one for one in RANGES if one.sizes], ids=names)
def test_a_range_says_nothing_about_other_sizes_but_counts_where_the_size_is_unknown(range_: Range) -> None:
    assert range_.sizes is not None
    smallest, largest = range_.sizes
    value = range_.high * 3
    assert len(found(range_, value, smallest)) == len(found(range_, value, largest)) == 1
    assert found(range_, value, smallest - 1) == found(range_, value, largest + 1) == []
    (sentence,) = found(range_, value, None)
    assert "the size of this model is not known" in sentence


def test_a_whole_sentence() -> None:
    (advice,) = warnings({"ppo": {"learning_rate": 3e-3}}, 7_000_000_000)
    assert (advice.key, advice.value, advice.low, advice.high) == ("ppo.learning_rate", 3e-3, 1e-6, 5e-5)
    assert advice.sentence == (
        "ppo.learning_rate is 0.003, above the 1e-6 to 5e-5 recommended for models of 1 to 100 billion parameters "
        "(Touvron et al. 2023 (Llama 2), section 3.2.3, 1e-6; Huang et al. 2024 (N+ details of RLHF with PPO), 3e-6; "
        "Ziegler et al. 2019, code, 1e-5): steps this large destroy the language before they raise the reward"
    )


@pytest.mark.parametrize(
    ("key", "low", "high", "size"),
    [
        ("ppo.clip_range", 0.1, 0.2, 1), ("ppo.kl_coef", 0.01, 0.1, 7e9), ("ppo.gae_lambda", 0.9, 1.0, 1),
        ("ppo.epochs", 3, 10, 7e9), ("ppo.value_coef", 0.1, 0.5, 1), ("ppo.entropy_coef", 0.0, 0.01, 1),
        ("ppo.learning_rate", 1e-6, 5e-5, 7e9), ("dpo.learning_rate", 5e-7, 5e-6, 7e9), ("ppo.gamma", 0.99, 1.0, 1),
        ("dpo.beta", 0.1, 0.5, 1), ("reward.epochs", 1, 1, 7e9), ("judge.epochs", 1, 1, 7e9),
        ("ppo.temperature", 0.7, 1.0, 1), ("ppo.group_size", 4, 64, 1),
    ],
)  # fmt: skip
def test_the_ranges_that_were_asked_for(key: str, low: float, high: float, size: float) -> None:
    stage, name = key.split(".")
    params = {stage: {**IN_USE.get(key, {}), name: high + 100}}
    (advice,) = warnings(params, int(size))
    assert (advice.low, advice.high) == (low, high)


def test_a_setting_that_is_not_in_use_is_not_judged() -> None:
    off = {
        "objective": "reinforce", "clip_range": 9.0, "advantage": "reward_to_go", "gae_lambda": 0.1,
        "value_model": "none", "value_coef": 9.0, "group_size": 1, "kl_coef": 0.0, "rewards": {"exact_answer": 1.0},
        "clip_range_high": None,
    }  # fmt: skip
    assert warnings({"ppo": off, "dpo": {"objective": "ipo", "beta": 9.0, "nll_coef": 0.0}}, 7_000_000_000) == []


def test_with_an_adapter_the_rates_of_adapters_count() -> None:
    params = {"ppo": {"learning_rate": 2e-4, "lora_rank": 16}}
    assert warnings(params, 7_000_000_000) == []
    assert len(warnings({"ppo": {"learning_rate": 2e-4, "lora_rank": 0}}, 7_000_000_000)) == 1


def test_parameter_files_of_other_projects_are_passed_over() -> None:
    assert warnings({"seed": 1, "ppo": {"epochs": "many", "gamma": True, "temperature": None}, "left": {}}, None) == []


def test_every_key_is_one_of_this_project() -> None:
    params = read_params(ROOT / "params.yaml")
    unknown = [one.key for one in RANGES if one.key.split(".")[1] not in params[one.key.split(".")[0]]]
    assert unknown == []
