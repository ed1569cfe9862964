import math

import pytest
import torch

from rlhf import matmul
from rlhf.fused_head import chosen_logprobs
from rlhf.logprobs import log_softmax

FORBIDDEN = torch.tensor([True, False, False, False, True, False, False])


def problem(dtype=torch.float32, seed=0):
    source = torch.Generator().manual_seed(seed)
    rows, weight = torch.randn(5, 3, generator=source), torch.randn(7, 3, generator=source)
    return rows.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), torch.tensor([1, 2, 6, 5, 1])


def test_values_worked_by_hand():
    # Logits 0, log 2, log 5 of one row: probabilities 1/8, 2/8, 5/8.
    weight = torch.tensor([[0.0], [math.log(2)], [math.log(5)]])
    found, spread = chosen_logprobs(
        torch.ones(2, 1), weight, torch.tensor([1, 2]), temperature=1.0, forbidden=None, with_entropy=True
    )
    torch.testing.assert_close(found, torch.tensor([2 / 8, 5 / 8]).log())
    entropy = -(math.log(1 / 8) / 8 + 2 * math.log(2 / 8) / 8 + 5 * math.log(5 / 8) / 8)
    torch.testing.assert_close(spread, torch.full((2,), entropy))


@pytest.mark.parametrize("library", ["native", "onednn"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("forbidden", [None, FORBIDDEN])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_values_and_gradients_are_those_of_separate_operations(library, temperature, forbidden, with_entropy):
    before = matmul.chosen()
    matmul.choose(library)
    try:
        rows, weight, ids = problem()
        found, spread = chosen_logprobs(
            rows, weight, ids, temperature=temperature, forbidden=forbidden, with_entropy=with_entropy
        )
        pull = torch.randn(2, 5, generator=torch.Generator().manual_seed(3))
        (found * pull[0] + (0.0 if spread is None else spread * pull[1])).sum().backward()
    finally:
        matmul.choose(before)
    plain_rows, plain_weight, _ = problem(torch.float64)
    table = log_softmax(plain_rows @ plain_weight.t(), temperature=temperature, forbidden=forbidden)
    wanted = table.gather(1, ids.unsqueeze(1)).squeeze(1)
    finite = table if forbidden is None else table.masked_fill(forbidden, 0.0)
    entropy = -(table.exp() * finite).sum(dim=1)
    (wanted * pull[0] + (entropy * pull[1] if with_entropy else 0.0)).sum().backward()
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)
    assert (spread is not None) == with_entropy
    if spread is not None:
        torch.testing.assert_close(spread, entropy.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows.grad, plain_rows.grad.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, plain_weight.grad.float(), rtol=1e-4, atol=1e-5)


def test_a_forbidden_token_has_no_probability_and_takes_none():
    rows, weight, _ = problem()
    ids = torch.tensor([0, 4, 1, 2, 3])
    found, _ = chosen_logprobs(rows, weight, ids, temperature=1.0, forbidden=FORBIDDEN, with_entropy=False)
    assert found[:2].tolist() == [-math.inf, -math.inf]
    assert bool(found[2:].isfinite().all())
    how = {"temperature": 1.0, "forbidden": FORBIDDEN, "with_entropy": False}
    free = torch.stack([chosen_logprobs(rows, weight, torch.full((5,), token), **how)[0] for token in range(7)])
    torch.testing.assert_close(free.exp().sum(dim=0), torch.ones(5))


def test_one_side_may_be_frozen():
    rows, weight, ids = problem()
    how = {"temperature": 1.0, "forbidden": None, "with_entropy": False}
    chosen_logprobs(rows.detach(), weight, ids, **how)[0].sum().backward()
    chosen_logprobs(rows, weight.detach(), ids, **how)[0].sum().backward()
    assert rows.grad is not None
    assert weight.grad is not None


def test_a_second_backward_pass_is_an_error_and_not_a_wrong_gradient():
    rows, weight, ids = problem()
    found, _ = chosen_logprobs(rows, weight, ids, temperature=1.0, forbidden=None, with_entropy=False)
    found.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        found.sum().backward()


def test_a_temperature_or_a_mask_that_does_not_fit_is_refused():
    rows, weight, ids = problem()
    with pytest.raises(ValueError, match="temperature"):
        chosen_logprobs(rows, weight, ids, temperature=0.0, forbidden=None, with_entropy=False)
    with pytest.raises(ValueError, match="forbidden has shape"):
        chosen_logprobs(rows, weight, ids, temperature=1.0, forbidden=FORBIDDEN[:3], with_entropy=False)
