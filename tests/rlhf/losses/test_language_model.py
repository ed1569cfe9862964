"""Cross-entropy of completions."""

import math

import pytest
import torch

from rlhf.losses.aggregation import sequence_mean
from rlhf.losses.language_model import completion_loss

MASK = torch.tensor([[False, True, True], [False, True, False]])
LOGPROBS = torch.tensor([[-9.0, -1.0, -2.0], [-9.0, -6.0, -9.0]])


def test_by_hand() -> None:
    # (1 + 2 + 6) / 3; the prompt's -9 and the pad's -9 do not count
    assert completion_loss(LOGPROBS, MASK) == 3


def test_uniform_guessing_has_the_vocabulary_as_perplexity() -> None:
    assert completion_loss(torch.full((2, 3), -math.log(50)), MASK).exp().item() == pytest.approx(50, rel=1e-5)


def test_gradient_raises_response_tokens_only_and_poison_stays_outside() -> None:
    logprobs = torch.where(MASK, LOGPROBS, math.nan).requires_grad_()
    loss = completion_loss(logprobs, MASK)
    loss.backward()
    assert loss == 3
    assert logprobs.grad is not None
    assert torch.allclose(logprobs.grad, torch.where(MASK, -1 / 3, 0.0))


def test_micro_batches_add_up() -> None:
    parts = [completion_loss(LOGPROBS[i : i + 1], MASK[i : i + 1], total_tokens=3) for i in range(2)]
    # 3/3 + 6/3
    assert [part.item() for part in parts] == [1, 2]


def test_at_equal_lengths_it_is_the_mean_over_sequences() -> None:
    full = torch.ones_like(MASK)
    wanted = -sequence_mean(LOGPROBS, full).item()
    assert completion_loss(LOGPROBS, full).item() == pytest.approx(wanted, rel=1e-6)


def test_gradcheck() -> None:
    logprobs = LOGPROBS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: completion_loss(x, MASK, total_tokens=7), logprobs)


def test_bad_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="total_tokens is 0"):
        completion_loss(LOGPROBS, torch.zeros_like(MASK))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\) but x has \(2, 3\)"):
        completion_loss(LOGPROBS, MASK[0])
