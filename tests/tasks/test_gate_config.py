"""The gate's section of mlflow/registry.yaml: what may be left out, and what is impossible."""

from typing import Any

import pytest

from rlhf.errors import BadInput
from tasks.gate_config import read_gate
from tasks.gate_rules import SliceRule

WIN = {"name": "judge_win", "above": 0.5, "bound": "low"}
BEFORE = {"mode": "enforce", "first_champion": "any", "resamples": 2000, "confidence": 0.95, "seed": 1, "rules": [WIN]}
"""A section as it was written before looks, slices and margins existed."""


def test_an_older_file_gets_the_safeguards() -> None:
    gate = read_gate(BEFORE)
    assert (gate.false_promotions, gate.smallest_effect, gate.power) == (0.05, 0.05, 0.8)
    assert gate.slices == SliceRule(fields="auto", floor=0.4, prompts=20)


def test_margins_and_slices_are_understood() -> None:
    margin = {"name": "kl", "not_worse_by": 2, "soft": True}
    slices = {"fields": ["intent"], "floor": 0, "prompts": 5}
    gate = read_gate({**BEFORE, "rules": [WIN, margin], "slices": slices, "false_promotions": 0.1})
    spec = gate.rules[1]
    assert (spec.name, spec.direction, spec.threshold, spec.bound, spec.soft) == ("kl_change", "below", 2, "high", True)
    assert gate.slices == SliceRule(fields=("intent",), floor=0.0, prompts=5)
    assert gate.false_promotions == 0.1


def test_a_change_may_be_bounded_directly() -> None:
    gate = read_gate({**BEFORE, "rules": [{"name": "end_rate_change", "above": -0.1, "bound": "low"}]})
    assert (gate.rules[0].name, gate.rules[0].threshold) == ("end_rate_change", -0.1)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"name": "judge_win"}], "has none of above, below and not_worse_by"),
        ([{"name": "kl", "below": 5, "not_worse_by": 1}], "has below and not_worse_by"),
        ([{"name": "end_rate", "not_worse_than": 0.1}], "not_worse_than; did you mean .*not_worse_by"),
        ([{"name": "end_rate", "not_worse_by": 0.1, "bound": "low"}], "always about the worse end"),
        ([{"name": "end_rate_change", "not_worse_by": 0.1}], "wanted end_rate beside not_worse_by"),
        ([{"name": "end_rate", "not_worse_by": 0}], "which equal models never show"),
        ([{"name": "judge_win", "not_worse_by": 0.6}], "wanted a number from 0 to 0.5"),
        ([{"name": "end_rate", "above": 1.0}], "end_rate is never above 1, so nobody could pass"),
        ([{"name": "kl", "below": 0}], "kl is never below 0"),
        ([WIN, {"name": "judge_win", "below": 0.4}], "nobody has judge_win above 0.5 .low. and below 0.4 .value."),
        ([], "no rule that binds, so everybody would pass"),
        ([{"name": "kl", "below": 5, "soft": True}], "no rule that binds"),
        ([3], r"gate.rules\[0\] is a number, wanted a mapping"),
        ("win", "gate.rules is text, wanted a list of rules"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rules: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_gate({**BEFORE, "rules": rules})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("false_promotions", 0, "gate.false_promotions is 0, wanted a number from 0.0001 to 0.5"),
        ("smallest_effect", 0.5, "gate.smallest_effect is 0.5"),
        ("power", 80, "gate.power is 80, wanted a number from 0.5 to 0.999"),
        ("resamples", 150, "gate.resamples is 150, wanted at least 200 for a confidence of 0.95"),
        ("confidence", 0.9999, "wanted at least 100000"),
        ("slices", [], "gate.slices is a list, wanted a mapping"),
        ("slices", {"fields": "intent", "floor": 0.4, "prompts": 20}, "wanted auto or a list of fields"),
        ("slices", {"fields": "auto", "floor": 0.6, "prompts": 20}, "gate.slices.floor is 0.6"),
        ("slices", {"fields": "auto", "floor": 0.4}, "gate.slices.prompts is missing"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(key: str, value: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_gate({**BEFORE, key: value})


def test_a_band_and_rules_of_an_open_gate_are_possible() -> None:
    band = [{"name": "kl", "above": 0.5}, {"name": "kl", "below": 5}]
    # The low end below and the high end above: a wide interval passes both.
    wide = [{"name": "kl", "above": 3, "bound": "high"}, {"name": "kl", "below": 2, "bound": "low"}]
    for rules in (band, wide):
        assert len(read_gate({**BEFORE, "rules": rules}).rules) == 2
    assert read_gate({**BEFORE, "mode": "off", "rules": []}).rules == ()
