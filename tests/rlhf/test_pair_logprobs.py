"""Pairs: sums over the tokens of each side, in the order of the data."""

import pytest
import torch

from rlhf.batches import collate
from rlhf.logprobs import response_logprobs
from rlhf.models import forbidden_ids, load_policy
from rlhf.pair_logprobs import Answer, all_answer_logprobs, all_pair_logprobs, answer_logprobs, pair_logprobs
from rlhf.preferences import Pair
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny

ATOL = 1e-5
PAIRS = [
    Pair([10, 11], [5, 6, 7], [8], 1.0),
    Pair([12], [9], [5, 5, 5, 5], 1.0),
    Pair([13, 14, 15], [6, 6], [7, 7], 0.5),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_sft(tmp_path_factory.mktemp("models") / "sft")


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(folder, device="cpu")


@pytest.fixture(scope="module")
def forbidden(folder, policy):
    return forbidden_ids(load_tokenizer(folder), policy)


def test_both_sides_of_a_pair_are_sums_over_their_tokens(policy, forbidden):
    chosen, rejected = pair_logprobs(policy, PAIRS, forbidden, pad_id=0)
    alone = collate([PAIRS[0].prompt], [PAIRS[0].chosen], pad_id=0)
    tokens = response_logprobs(policy, alone, temperature=1.0, forbidden=forbidden).logprobs[0, 2:5]
    assert chosen[0].item() == pytest.approx(sum(tokens.tolist()), abs=ATOL)
    assert chosen.shape == rejected.shape == (3,)
    assert chosen.requires_grad


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_the_pass_over_a_data_set_keeps_its_order(policy, forbidden, rows):
    found = all_pair_logprobs(policy, PAIRS, forbidden, pad_id=0, rows=rows, precision="float32")
    expected = torch.stack(pair_logprobs(policy, PAIRS, forbidden, pad_id=0), dim=1)
    assert torch.allclose(found, expected.detach(), atol=ATOL)
    assert not found.requires_grad


def test_no_pairs_give_an_empty_table(policy, forbidden):
    assert all_pair_logprobs(policy, [], forbidden, pad_id=0, rows=4, precision="float32").shape == (0, 2)


@pytest.mark.parametrize("rows", [1, 8])
def test_single_answers_are_the_sides_of_pairs(policy, forbidden, rows):
    answers = [Answer(pair.prompt, pair.rejected) for pair in PAIRS]
    _, rejected = pair_logprobs(policy, PAIRS, forbidden, pad_id=0)
    found = all_answer_logprobs(policy, answers, forbidden, pad_id=0, rows=rows, precision="float32")
    assert torch.allclose(found, rejected.detach(), atol=ATOL)
    assert not found.requires_grad
    assert answer_logprobs(policy, answers, forbidden, pad_id=0).requires_grad
    assert all_answer_logprobs(policy, [], forbidden, pad_id=0, rows=rows, precision="float32").shape == (0,)


def test_an_answer_without_a_token_costs_nothing(policy, forbidden):
    answers = [Answer([10, 11], []), Answer([12], [9])]
    assert answer_logprobs(policy, answers, forbidden, pad_id=0)[0].item() == 0
