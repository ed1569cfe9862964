"""Choosing tokens: two levels of sums find what one running sum finds."""

import pytest
import torch

from rlhf.logprobs import log_softmax
from rlhf.sampling import BLOCK, choose, invert

SEED = 4


def rows(vocabulary, count=64, dtype=torch.float32):
    source = torch.Generator().manual_seed(SEED)
    found = torch.rand(count, vocabulary, generator=source, dtype=dtype) ** 8
    found[torch.rand(count, vocabulary, generator=source) < 0.3] = 0.0
    found[:, vocabulary // 2] += 1e-3
    return found


def uniforms(count=64):
    return torch.rand(count, generator=torch.Generator().manual_seed(SEED + 1), dtype=torch.float64)


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 1000, 8192])
def test_the_token_is_that_of_one_running_sum(vocabulary):
    probabilities, numbers = rows(vocabulary), uniforms()
    running = probabilities.double().cumsum(dim=1)
    expected = torch.searchsorted(running, (numbers * running[:, -1]).unsqueeze(1), right=True).squeeze(1)
    assert torch.equal(invert(probabilities, numbers), expected)


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
@pytest.mark.parametrize("only", [0, 63, 64, 199])
def test_the_ends_of_the_unit_interval_give_tokens_that_have_probability(number, only):
    probabilities = torch.zeros(1, 200)
    probabilities[0, only] = 0.25
    assert invert(probabilities, torch.tensor([number], dtype=torch.float64)).item() == only


def test_a_number_at_the_end_of_a_block_stays_within_what_has_probability():
    # Blocks of 0.5 each, the first with all of it at its beginning: 0.5 less a hair is still token 0, 0.5 token 64.
    probabilities = torch.zeros(2, 2 * BLOCK)
    probabilities[:, 0], probabilities[:, BLOCK] = 0.5, 0.5
    numbers = torch.tensor([0.5 - 2.0**-45, 0.5 + 2.0**-39], dtype=torch.float64)
    assert invert(probabilities, numbers).tolist() == [0, BLOCK]


def test_probabilities_too_small_for_a_running_sum_in_fp32_are_drawn():
    # 2**20 tokens of 2**-30 behind one of 1: in fp32 the sum would stay at 1, and none of them could ever be drawn.
    probabilities = torch.full((1, 2**20 + 1), 2.0**-30)
    probabilities[0, 0] = 1.0
    number = (1 + 2.0**-11) / (1 + 2.0**-10)  # the middle of the small ones
    found = int(invert(probabilities, torch.tensor([number], dtype=torch.float64)))
    assert abs(found - 2**19) <= 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_the_distribution_that_is_trained(temperature):
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(SEED)) * 5
    forbidden = torch.zeros(300, dtype=torch.bool)
    forbidden[[0, 7, 299]] = True
    expected = log_softmax(logits, temperature=temperature, forbidden=forbidden)
    settings = {"temperature": temperature, "forbidden": forbidden.nonzero().squeeze(1)}
    chosen, logprobs = choose(logits.clone(), uniforms=uniforms(8), **settings)
    assert not forbidden[chosen].any()
    torch.testing.assert_close(logprobs, expected.gather(1, chosen.unsqueeze(1)).squeeze(1), atol=1e-6, rtol=0)
    likeliest, logprobs = choose(logits.clone(), uniforms=None, **settings)
    assert torch.equal(likeliest, expected.argmax(dim=1))
    torch.testing.assert_close(logprobs, expected.amax(dim=1), atol=1e-6, rtol=0)


def test_a_row_of_nan_gives_some_token_and_no_number():
    logits = torch.randn(2, 70)
    logits[1] = torch.nan
    chosen, logprobs = choose(logits, temperature=1.0, forbidden=None, uniforms=uniforms(2))
    assert bool((chosen < 70).all())
    assert logprobs.isfinite().tolist() == [True, False]
