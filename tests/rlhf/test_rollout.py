"""Rollouts: sampled rows lie by length, scores replace where a response was cut, values belong to the state before."""

import dataclasses

import pytest
import torch

from rlhf.batches import collate
from rlhf.masking import masked_whiten
from rlhf.models import build_policy, forbidden_ids
from rlhf.reference import Comparison
from rlhf.rollout import (
    Rollout,
    describe,
    finish_scores,
    sample_responses,
    spread_globally,
    state_values,
    whiten_globally,
)
from rlhf.streams import random_source
from rlhf.tokenizer import stop_ids, train_tokenizer

ATOL = 1e-6


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["ab ba abba"], vocab_size=270)


@pytest.fixture(scope="module")
def policy(tokenizer):
    torch.manual_seed(0)
    return build_policy(tokenizer, hidden=16, layers=2, heads=2, intermediate=32, context=64)


def sample(policy, tokenizer, seed=0, max_new_tokens=6):
    prompts = [[10, 11, 12], [13], [14, 15], [16, 17, 18, 19]]
    return prompts, sample_responses(
        policy, prompts, max_new_tokens=max_new_tokens, temperature=1.0, stops=stop_ids(tokenizer, policy),
        forbidden=forbidden_ids(tokenizer, policy), pad_id=tokenizer.pad_token_id, source=random_source(seed),
    )  # fmt: skip


def test_sampled_rows_lie_by_length_and_keep_their_log_probabilities(policy, tokenizer):
    prompts, (batch, captured, ended, place) = sample(policy, tokenizer)
    lengths = batch.attention_mask.sum(dim=1).tolist()
    assert lengths == sorted(lengths)
    assert batch.response_mask.sum(dim=1).max() <= 6
    assert (captured[batch.response_mask] < 0).all()
    assert (captured[~batch.response_mask] == 0).all()
    assert ended.shape == (4,)
    assert sorted(place.tolist()) == [0, 1, 2, 3]
    for row, at in enumerate(place.tolist()):
        prompt = batch.input_ids[row][batch.attention_mask[row] & ~batch.response_mask[row]]
        assert prompt.tolist() == prompts[at]


def test_equal_sources_give_equal_samples_and_others_do_not(policy, tokenizer):
    _, first = sample(policy, tokenizer, seed=3)
    _, again = sample(policy, tokenizer, seed=3)
    _, other = sample(policy, tokenizer, seed=4)
    assert torch.equal(first.batch.input_ids, again.batch.input_ids)
    assert first.batch.input_ids.shape != other.batch.input_ids.shape or not torch.equal(
        first.batch.input_ids, other.batch.input_ids
    )


def finished(ended, **settings):
    return finish_scores(torch.tensor([1.0, 4.0, -3.0]), torch.tensor(ended), **settings).tolist()


def test_a_cut_response_gets_the_penalty_whatever_it_scores():
    # Replaced by -1.5, not lowered to 4 - 1.5.
    assert finished([True, False, True], missing_eos_penalty=1.5, reward_clip=None) == [1.0, -1.5, -3.0]


def test_scores_are_clipped_and_the_penalty_is_not():
    assert finished([True, True, True], missing_eos_penalty=1.0, reward_clip=2.0) == [1.0, 2.0, -2.0]
    assert finished([True, False, True], missing_eos_penalty=9.0, reward_clip=2.0) == [1.0, -9.0, -2.0]


def test_the_value_of_a_token_is_read_one_position_earlier():
    batch = collate([[10, 11], [12]], [[5, 6], [7, 8, 9]], pad_id=0)

    def position(input_ids, attention_mask):
        return torch.arange(4.0).expand(2, 4)

    # Row 0: response at 2 and 3, so values of 1 and 2. Row 1: response at 1, 2, 3, so values of 0, 1, 2.
    assert state_values(position, batch).tolist() == [[0, 0, 1, 2], [0, 0, 1, 2]]


def test_what_a_value_model_says_at_padding_or_about_the_prompt_never_counts():
    batch = collate([[10, 11], [12]], [[5], [7, 8, 9]], pad_id=0)
    values = state_values(lambda *_: torch.tensor([[9.0, 1.0, torch.nan, torch.nan], [1.0, 2.0, 3.0, 9.0]]), batch)
    assert values.tolist() == [[0, 0, 1, 0], [0, 1, 2, 3]]


def rollout():
    batch = collate([[10], [11, 12]], [[5], [6, 7]], pad_id=0)
    numbers = torch.arange(8.0).reshape(2, 4)
    return Rollout(batch=batch, logprobs=numbers, values=numbers + 10, advantages=numbers + 20, returns=numbers + 30)


def test_taking_rows_cuts_every_tensor_to_the_longest_of_them():
    part = rollout().take([0])
    assert part.batch.input_ids.tolist() == [[10, 5]]
    assert part.logprobs.tolist() == [[0, 1]]
    assert part.returns.tolist() == [[30, 31]]
    assert len(part) == 1


def test_parts_hold_every_row_once_in_order():
    whole = rollout()
    parts = whole.parts(1)
    assert [part.values[0, 0].item() for part in parts] == [10, 14]
    (same,) = whole.parts(None)
    assert torch.equal(same.advantages, whole.advantages)
    assert {field.name for field in dataclasses.fields(Rollout)} >= {"batch", "logprobs", "values", "returns"}


def test_what_a_rollout_may_lack_is_taken_along_where_it_is_there():
    whole = rollout()
    assert whole.take([0]).ref_logprobs is None
    assert torch.equal(whole.policy_mask, whole.batch.response_mask)
    mask = whole.batch.response_mask & torch.tensor([[True], [False]])
    part = dataclasses.replace(whole, ref_logprobs=whole.logprobs - 1, learn_mask=mask).take([0])
    assert part.ref_logprobs.tolist() == [[-1, 0]]
    assert part.policy_mask.tolist() == [[False, True]]


def test_the_spread_of_advantages_by_hand():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # 1, 2, 6: mean 3, squares 4 + 1 + 9
    spread = spread_globally(torch.tensor([[1.0, 2.0, torch.nan], [6.0, torch.inf, 0.0]]), mask)
    assert spread == pytest.approx((14 / 3) ** 0.5)
    assert spread_globally(torch.ones(2, 3), ~mask & mask) == 0


def test_where_no_token_is_left_whitened_advantages_are_zero():
    nowhere = torch.zeros(2, 3, dtype=torch.bool)
    assert whiten_globally(torch.full((2, 3), torch.nan), nowhere).tolist() == [[0.0] * 3] * 2


def test_on_one_rank_whitening_is_the_plain_one():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.tensor([[1.0, 2.0, torch.nan], [6.0, torch.inf, 0.0]])
    whitened = whiten_globally(advantages, mask)
    assert torch.equal(whitened, masked_whiten(advantages, mask))
    # mean 3, squares 4 + 1 + 9, so a standard deviation of sqrt(14 / 3)
    assert whitened[1, 0].item() == pytest.approx(3 / (14 / 3) ** 0.5, abs=ATOL)


def test_over_ranks_whitening_uses_the_sums_of_all(monkeypatch):
    from rlhf import distributed

    def doubled(values):
        return {name: 2 * value for name, value in values.items()}

    # Two ranks with equal shares: sums and counts double, and the result is that of one.
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "reduce_sum", doubled)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    advantages = torch.tensor([[1.0, 2.0, 9.0], [6.0, 9.0, 9.0]])
    assert torch.allclose(whiten_globally(advantages, mask), masked_whiten(advantages, mask), atol=ATOL)


def test_descriptions_are_means_over_responses_or_over_their_tokens():
    batch = collate([[10], [11]], [[5], [6, 7]], pad_id=0)
    mask = batch.response_mask
    logprobs = torch.tensor([[0.0, -1.0, 0.0], [0.0, -1.0, -2.0]])
    kl = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.25, 0.75]])
    old = Comparison(logprobs=logprobs, ref_logprobs=logprobs - mask.float(), entropy=kl * 2, kl=kl)
    found = describe(
        old, batch, logprobs + 0.1 * mask.float(), rewards=torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0]]),
        scores=torch.tensor([1.0, 4.0]), ended=torch.tensor([True, False]), values=kl, returns=kl,
        signals={"length": torch.tensor([1.0, 2.0])},
    )  # fmt: skip
    expected = {
        "reward": 3.0,  # (1 + 5) / 2
        "score": 2.5,
        "kl": 0.75,  # (0.5 + 1) / 2 per response
        "kl_k1": 1.5,  # (1 + 2) / 2
        "entropy": 1.0,  # (1 + 0.5 + 1.5) / 3 per token
        "length_tokens": 1.5,
        "end_rate": 0.5,
        "explained_variance": 1.0,
        "sampler_gap": 0.1,
        "reward_length": 1.5,
    }
    assert found == pytest.approx(expected, abs=ATOL)


def test_without_values_nothing_is_said_of_them():
    batch = collate([[10]], [[5]], pad_id=0)
    zero = torch.zeros(1, 2)
    old = Comparison(logprobs=zero, ref_logprobs=zero, entropy=zero, kl=zero)
    found = describe(
        old, batch, zero, rewards=zero, scores=torch.zeros(1), ended=torch.tensor([True]), values=None, returns=zero
    )
    assert "explained_variance" not in found
