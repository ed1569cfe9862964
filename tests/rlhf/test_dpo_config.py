"""Settings of the stage `dpo`: ranges, and what does not go together."""

import dataclasses

import pytest

from tests.rlhf.recipes.tiny_dpo import CONFIG


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 0.0), ("label_smoothing", 0.5), ("label_smoothing", -0.1), ("learning_rate", 0.0), ("batch_size", 0),
        ("micro_batch", 0), ("epochs", 0.0), ("warmup_fraction", 1.0), ("final_lr_fraction", 2.0),
        ("max_grad_norm", -1.0), ("max_tokens", 0), ("max_pairs", 0), ("max_new_tokens", 0), ("sample_every", 0),
        ("precision", "int8"), ("objective", "ppo"), ("nll_coef", -1.0), ("desirable_weight", 0.0),
        ("undesirable_weight", -1.0), ("lora_rank", -1), ("lora_alpha", 0.0),
    ],
)  # fmt: skip
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize(
    ("objective", "field", "value"),
    [
        ("ipo", "label_smoothing", 0.1), ("kto", "label_smoothing", 0.1), ("kto", "length_normalised", True),
        ("kto", "reference_free", True), ("kto", "nll_coef", 1.0), ("dpo", "desirable_weight", 2.0),
        ("ipo", "undesirable_weight", 2.0),
    ],
)  # fmt: skip
def test_what_the_objective_would_not_read_is_refused(objective, field, value):
    with pytest.raises(ValueError, match=f"{field} is {value} but the objective {objective} has no such part"):
        dataclasses.replace(CONFIG, objective=objective, **{field: value})


def test_kto_needs_two_judgements_in_a_batch():
    with pytest.raises(ValueError, match="batch_size is 1, wanted 2 or more"):
        dataclasses.replace(CONFIG, objective="kto", batch_size=1)
    assert dataclasses.replace(CONFIG, objective="dpo", batch_size=1).batch_size == 1
