"""Pairs as the stage `dpo` reads and measures them."""

import dataclasses
import math

import pytest
import torch

from rlhf.logprob_cache import LogprobCache
from rlhf.models import forbidden_ids, load_policy
from rlhf.pair_objective import PairObjective, Tokens, read_pairs
from rlhf.tokenizer import encode_prompt, encode_response, load_tokenizer, pad_of
from tests.rlhf.recipes.tiny_dpo import CONFIG, pair, write_inputs, write_split

ROWS = [pair(0, "e", "b"), pair(1, "see", "hr"), pair(2, "tree", "s", 0.3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def sft(folder):
    return write_inputs(folder)["sft"]


@pytest.fixture(scope="module")
def policy(sft):
    return load_policy(sft, device="cpu")


@pytest.fixture
def objective(folder, sft, policy):
    """Build an objective over `ROWS` and ask the policy itself about them."""
    tokenizer = load_tokenizer(sft)
    tokens = Tokens(forbidden_ids(tokenizer, policy), pad_of(tokenizer))
    pairs = write_split(folder / "three", "pairs", ROWS, ROWS[:1])

    def build(**changes):
        config = dataclasses.replace(CONFIG, **changes)
        found = PairObjective(config, tokenizer, tokens, pairs=pairs, judgements=pairs, max_tokens=60)
        cache = LogprobCache(sft, tokens.forbidden, rows=config.batch_size, precision=config.precision)
        found.ask_reference(policy, [[0, 1, 2]], cache)
        return found

    return build


def loss(objective, policy, index=(0, 1, 2), total=3):
    return objective.compare(policy, "train", list(index), objective.anchor(policy, "train", index, 0), total=total)


def test_ties_and_long_pairs_are_counted_and_left_out(folder, sft):
    tokenizer = load_tokenizer(sft)
    rows = [*ROWS, pair(3, "e", "b", 0.5), pair(4, "h" * 60, "b")]
    write_split(folder / "five", "pairs", rows)
    found = read_pairs(folder / "five/pairs/train.jsonl", tokenizer, max_tokens=50, max_pairs=None)
    assert found.counts == {"pairs": 3, "ties": 1, "too_long": 1}
    assert [one.label for one in found.usable] == [1.0, 1.0, 0.3]
    first = read_pairs(folder / "five/pairs/train.jsonl", tokenizer, max_tokens=50, max_pairs=1)
    assert first.counts == {"pairs": 1, "ties": 0, "too_long": 0}


def test_lengths_are_those_of_the_longer_side(objective, sft):
    tokenizer = load_tokenizer(sft)
    wanted = [
        len(encode_prompt(tokenizer, row["prompt"]))
        + max(len(encode_response(tokenizer, row[side])) for side in ("chosen", "rejected"))
        for row in ROWS
    ]
    assert objective().lengths("train") == wanted


def test_a_policy_that_is_its_reference_costs_what_the_formulas_say(objective, policy):
    value, numbers = loss(objective(), policy)
    assert value.item() == pytest.approx(math.log(2), abs=1e-5)
    assert numbers["chosen_change"] == pytest.approx(0, abs=1e-4)
    # Targets (2 label - 1) / 0.2: 5, 5 and -2, squared
    value, _ = loss(objective(objective="ipo"), policy)
    assert value.item() == pytest.approx((25 + 25 + 4) / 3, abs=1e-2)


def test_without_a_reference_its_table_is_zero_and_no_change_is_recorded(objective, policy):
    free = objective(reference_free=True)
    assert torch.equal(free.reference["train"], torch.zeros(3, 2))
    _, numbers = loss(free, policy)
    assert "chosen_change" not in numbers
    assert numbers["chosen_reward"] == pytest.approx(0.1 * numbers["chosen_logprob"], rel=1e-5)


def test_the_nll_term_is_added_with_its_weight(objective, policy):
    plain, _ = loss(objective(), policy)
    value, numbers = loss(objective(nll_coef=0.5), policy)
    assert numbers["nll"] > 0
    assert value.item() == pytest.approx(plain.item() + 0.5 * numbers["nll"], rel=1e-5)
    assert numbers["loss"] == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{}, {"label_smoothing": 0.1, "nll_coef": 1.0}, {"objective": "ipo", "length_normalised": True}],
    ids=["dpo", "cdpo-nll", "ipo-per-token"],
)
def test_parts_of_a_batch_add_up(objective, policy, changes):
    found = objective(**changes)
    whole, numbers = loss(found, policy)
    parts = [loss(found, policy, index) for index in ((0, 2), (1,))]
    assert sum(part[0].item() for part in parts) == pytest.approx(whole.item(), abs=1e-5)
    for name, value in numbers.items():
        assert sum(part[1][name] for part in parts) == pytest.approx(value, abs=1e-4)
    assert found.means({"loss": 3.0}, 2) == {"loss": 1.5}
