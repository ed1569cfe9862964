"""The sign of the entropy bonus: subtracted from a loss that is minimised, since randomness is wanted."""

import math

import pytest
import torch

from rlhf.logprobs import log_softmax, table_entropy
from tests.rlhf.test_improvement import roles as roles
from tests.rlhf.test_improvement import update


def nats(logits: torch.Tensor) -> torch.Tensor:
    return table_entropy(log_softmax(logits, temperature=1.0, forbidden=None), None)


def after_a_step(sign: float) -> float:
    """Entropy of p = (1/2, 1/4, 1/4) after one step of size 1 down the loss `sign * entropy`, in its logits."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    (sign * nats(logits).sum()).backward()
    assert logits.grad is not None
    return float(nats(logits.detach() - logits.grad))


def test_subtracting_entropy_raises_it_and_adding_it_lowers_it() -> None:
    # H = (1/2) ln 2 + 2 (1/4) ln 4 = 1.5 ln 2 = 1.0397; dH/dlogit_i = -p_i (ln p_i + H) = (-0.1733, 0.0866, 0.0866).
    # Down -H, the logits become (-0.8664, -1.2996, -1.2996): p = (0.4354, 0.2823, 0.2823), whose entropy is 1.0761.
    # Down +H, they become (-0.5199, -1.4729, -1.4729): p = (0.5646, 0.2177, 0.2177), whose entropy is 0.9866.
    subtracted, added = after_a_step(-1.0), after_a_step(+1.0)
    assert added < 1.5 * math.log(2) < subtracted
    assert subtracted == pytest.approx(1.0761, abs=1e-4)
    assert added == pytest.approx(0.9866, abs=1e-4)


def mean_entropy(policy: torch.nn.Module) -> float:
    with torch.no_grad():
        return float(nats(policy(torch.tensor([[10, 11, 12, 13, 14, 15]])).logits).mean())


def test_updates_with_a_bonus_raise_the_entropy_of_the_policy(roles) -> None:
    before = mean_entropy(roles.policy)
    update(roles, advantage=0.0, entropy_coef=1.0)
    assert mean_entropy(roles.policy) > before + 0.1


def test_without_bonus_and_advantage_nothing_moves(roles) -> None:
    before = mean_entropy(roles.policy)
    update(roles, advantage=0.0, entropy_coef=0.0)
    assert mean_entropy(roles.policy) == before
