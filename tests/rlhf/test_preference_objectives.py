"""The objectives by name, and what they say about held-out examples."""

import dataclasses

import pytest

from rlhf.dpo_config import OBJECTIVES as NAMES
from rlhf.logprob_cache import LogprobCache
from rlhf.models import forbidden_ids, load_policy
from rlhf.pair_objective import Tokens
from rlhf.preference_objectives import OBJECTIVES, held_out
from rlhf.tokenizer import load_tokenizer, pad_of
from tests.rlhf.recipes.tiny_dpo import CONFIG, write_inputs, write_split


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    found = write_inputs(folder)
    return {**found, "none": write_split(folder / "none", "pairs", ())}


def build(inputs, policy, name, pairs, plan=((0, 1),), **changes):
    tokenizer = load_tokenizer(inputs["sft"])
    tokens = Tokens(forbidden_ids(tokenizer, policy), pad_of(tokenizer))
    config = dataclasses.replace(CONFIG, objective=name, **changes)
    paths = {"pairs": pairs, "judgements": inputs["judgements"]}
    found = OBJECTIVES[name](config, tokenizer, tokens, **paths, max_tokens=60)
    cache = LogprobCache(inputs["sft"], tokens.forbidden, rows=config.batch_size, precision=config.precision)
    found.ask_reference(policy, plan, cache)
    return found


def test_every_name_of_the_settings_has_an_objective():
    assert tuple(OBJECTIVES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_held_out_numbers_do_not_depend_on_the_batch_size(inputs, name):
    policy = load_policy(inputs["sft"], device="cpu")
    whole = held_out(build(inputs, policy, name, inputs["pairs"], batch_size=32), policy, "dev")
    cut = held_out(build(inputs, policy, name, inputs["pairs"], batch_size=4), policy, "dev")
    assert whole == pytest.approx(cut, rel=1e-4, abs=1e-4)
    assert whole.keys() == cut.keys()
    assert {"loss", "margin"} <= whole.keys()


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_split_says_nothing(inputs, name):
    policy = load_policy(inputs["sft"], device="cpu")
    found = build(inputs, policy, name, inputs["none"], plan=())
    assert held_out(found, policy, "dev") == {}
    assert "nothing to learn from" in found.refusal()
