"""The reference: equal policies differ by nothing, others by what float64 arithmetic says."""

import math

import pytest
import torch

from rlhf.batches import collate
from rlhf.models import forbidden_ids, load_policy
from rlhf.reference import compare_with_reference
from rlhf.tokenizer import load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny

ATOL = 1e-5


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
