"""The reference: equal policies differ by nothing, and pairs are summed over their tokens."""

import math

import pytest
import torch

from rlhf.batches import collate
from rlhf.logprobs import response_logprobs
from rlhf.models import forbidden_ids, load_policy
from rlhf.preferences import Pair
from rlhf.reference import all_pair_logprobs, compare_with_reference, pair_logprobs
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


@pytest.fixture
def batch():
    return collate([[10, 11], [12]], [[5, 6, 7], [8, 9]], pad_id=0)


def test_a_policy_does_not_differ_from_itself(policy, batch, forbidden):
    found = compare_with_reference(policy, policy, batch, forbidden, temperature=0.7, rows=2)
    assert torch.equal(found.logprobs, found.ref_logprobs)
    assert torch.allclose(found.kl, torch.zeros(2, 5), atol=1e-6)
    assert (found.entropy[batch.response_mask] > 0.5).all()
    assert not found.logprobs.requires_grad


def test_kl_is_the_mean_log_ratio_over_the_vocabulary(folder, policy, batch, forbidden):
    other = tiny.write_sft(folder.parent / "other", seed=9)
    reference = load_policy(other, device="cpu")
    found = compare_with_reference(policy, reference, batch, forbidden, temperature=1.0, rows=1)
    row, place = 1, 2
    ours, theirs = (
        model(batch.input_ids[row : row + 1, :3]).logits[0, place - 1].masked_fill(forbidden, -1e30).double()
        for model in (policy, reference)
    )
    # In float64, by hand: sum of p (log p - log q), and the entries of the sampled token.
    p, q = ours.softmax(-1), theirs.softmax(-1)
    kl = sum(p_v * math.log(p_v / q_v) for p_v, q_v in zip(p.tolist(), q.tolist(), strict=True) if p_v > 0)
    assert found.kl[row, place].item() == pytest.approx(kl, abs=ATOL)
    token = batch.input_ids[row, place]
    assert found.logprobs[row, place].item() == pytest.approx(p[token].log().item(), abs=ATOL)
    assert found.ref_logprobs[row, place].item() == pytest.approx(q[token].log().item(), abs=ATOL)
    assert (found.kl >= -1e-6).all()
    assert (found.kl[~batch.response_mask] == 0).all()


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
