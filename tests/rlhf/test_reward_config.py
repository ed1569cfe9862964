"""Settings of the reward recipe: what params.yaml says is taken, what is out of range is not."""

import dataclasses

import pytest

from rlhf.config import load_section, read_params
from rlhf.reward_config import Config


@pytest.fixture
def config(project):
    return load_section(read_params(project / "params.yaml"), "reward", Config)


def test_reward_and_judge_have_the_same_keys(project):
    params = read_params(project / "params.yaml")
    assert list(params["reward"]) == list(params["judge"])
    load_section(params, "judge", Config)


def test_the_default_is_one_model_on_all_pairs(config):
    assert (config.members, config.member_share, config.margin_coef, config.ranking_loss) == (1, 1.0, 0.0, "pairs")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pooling", "max"),
        ("scale", 0.0),
        ("centering", -1.0),
        ("margin_coef", -0.1),
        ("margin_coef", float("inf")),
        ("ranking_loss", "listwise"),
        ("members", 0),
        ("member_share", 0.0),
        ("member_share", 1.1),
        ("normalise_samples", 1),
        ("swap_weight", -1.0),
        ("swap_share", 1.1),
        ("max_pairs", 0),
        ("weight_decay", -0.1),
        ("learning_rate", float("nan")),
        ("precision", "half"),
    ],
)
def test_values_out_of_range_are_refused(config, field, value):
    with pytest.raises(ValueError, match=f"{field} is .*wanted"):
        dataclasses.replace(config, **{field: value})
