"""Swaps are checked with a policy that has learnt one thing: to repeat the number of its prompt."""

import pytest
import torch

from rlhf.batches import collate
from rlhf.engine import prepare
from rlhf.logprobs import response_logprobs
from rlhf.losses.language_model import completion_loss
from rlhf.models import build_policy, forbidden_ids
from rlhf.token_swaps import swap_tokens
from rlhf.tokenizer import encode_prompt, encode_response, train_tokenizer

NUMBERS = range(1, 7)


def ask(number):
    return [{"role": "user", "content": f"It is {number}"}]


@pytest.fixture(scope="module")
def copier():
    tokenizer = train_tokenizer([f"It is {n} {n} yes" for n in NUMBERS] * 4, vocab_size=280)
    torch.manual_seed(0)
    policy = build_policy(tokenizer, hidden=32, layers=2, heads=2, intermediate=64, context=32)
    engine = prepare(policy, learning_rate=5e-3, schedule=lambda step: 1.0, max_grad_norm=1.0, precision="float32")
    prompts = [encode_prompt(tokenizer, ask(number)) for number in NUMBERS]
    responses = [encode_response(tokenizer, f" {number} yes") for number in NUMBERS]
    batch = collate(prompts, responses, pad_id=0).to(engine.device)
    for _ in range(120):
        logprobs = response_logprobs(policy, batch, temperature=1.0, forbidden=None).logprobs
        engine.backward(completion_loss(logprobs, batch.response_mask))
        engine.step()
    assert float(completion_loss(logprobs.detach(), batch.response_mask)) < 0.1
    return tokenizer, policy, prompts, responses


def swap(copier, prompts, others, responses, seeds):
    tokenizer, policy, *_ = copier
    return swap_tokens(
        policy, prompts, others, responses, seeds=seeds, forbidden=forbidden_ids(tokenizer, policy), pad_id=0
    )


def test_only_the_number_is_judged_and_it_becomes_that_of_the_other_prompt(copier):
    _, _, prompts, responses = copier
    others, other_responses = [*prompts[1:], prompts[0]], [*responses[1:], responses[0]]
    swapped = swap(copier, prompts, others, responses, seeds=range(6))
    changed = 0
    for row, result in enumerate(swapped):
        assert result.judged == [True, False, False]
        assert result.original[1:] == [True, True]
        expected = responses[row] if result.original[0] else [other_responses[row][0], *responses[row][1:]]
        assert result.response == expected
        changed += not result.original[0]
    # a fair coin for each of six rows
    assert 0 < changed < 6


def test_the_same_prompt_gives_nothing_to_swap(copier):
    _, _, prompts, responses = copier
    for row, result in enumerate(swap(copier, prompts, prompts, responses, seeds=range(6))):
        assert not any(result.judged)
        assert result.response == responses[row]


def test_a_row_depends_on_itself_alone(copier):
    _, _, prompts, responses = copier
    others = [*prompts[1:], prompts[0]]
    together = swap(copier, prompts, others, responses, seeds=range(6))
    for row in range(6):
        alone = swap(copier, prompts[row : row + 1], others[row : row + 1], responses[row : row + 1], seeds=[row])
        assert alone == together[row : row + 1]


def test_a_long_other_prompt_loses_its_beginning(copier):
    _, _, prompts, responses = copier
    long = [[9] * 40 + prompts[1]]
    (result,) = swap(copier, prompts[:1], long, responses[:1], seeds=[1])
    assert len(result.response) == len(responses[0])


def test_no_answers_give_no_swaps(copier):
    assert swap(copier, [], [], [], seeds=[]) == []
