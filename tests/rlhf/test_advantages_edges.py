"""Advantages of several rows at once, at the ends of every range, and each refused shape by its name."""

from functools import partial

import pytest
import torch
from torch import Tensor

from rlhf.advantages import (
    GROUP_STD_FLOOR,
    all_equal,
    full_return,
    gae,
    group_relative,
    leave_one_out,
    rewards_to_go,
    shape_rewards,
)

REWARDS = torch.tensor([[0.0, 1.0, 2.0, 4.0], [0.0, 8.0, 0.0, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[False, True, True, True], [True, True, False, False]])
FUNCTIONS = {
    "gae": lambda token_rewards, values, response_mask: gae(
        token_rewards, values, response_mask, gamma=0.5, gae_lambda=1.0
    ),
    "to_go": lambda token_rewards, response_mask: rewards_to_go(token_rewards, response_mask, gamma=0.5),
    "full": lambda token_rewards, response_mask: full_return(token_rewards, response_mask, gamma=0.5),
    "shaped": lambda logprobs, ref_logprobs, response_mask: shape_rewards(
        torch.zeros(2), logprobs, ref_logprobs, response_mask, kl_coef=0.1
    ),
}
ARGUMENTS = {
    "gae": ("token_rewards", "values", "response_mask"),
    "to_go": ("token_rewards", "response_mask"),
    "full": ("token_rewards", "response_mask"),
    "shaped": ("logprobs", "ref_logprobs", "response_mask"),
}


def tensor_for(name: str) -> Tensor:
    return torch.ones(2, 3, dtype=torch.bool) if name == "response_mask" else torch.rand(2, 3)


def test_each_row_has_a_return_of_its_own() -> None:
    # gamma 1/2. Row 1: 1 + 2/2 + 4/4 = 3, everywhere. Row 2: 0 + 8/2 = 4.
    assert full_return(REWARDS, MASK, gamma=0.5).tolist() == [[0, 3, 3, 3], [4, 4, 0, 0]]
    # Row 1: 4; 2 + 4/2 = 4; 1 + 4/2 = 3. Row 2: 8; 8/2 = 4.
    assert rewards_to_go(REWARDS, MASK, gamma=0.5).tolist() == [[0, 3, 4, 4], [4, 8, 0, 0]]
    advantages, returns = gae(REWARDS, torch.zeros_like(REWARDS), MASK, gamma=0.5, gae_lambda=1.0)
    assert advantages.tolist() == returns.tolist() == [[0, 3, 4, 4], [4, 8, 0, 0]]


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_ends_of_the_ranges_are_allowed(gamma: float) -> None:
    first = 1.0 + gamma * 6
    assert rewards_to_go(REWARDS, MASK, gamma=gamma)[0, 1] == first
    assert full_return(REWARDS, MASK, gamma=gamma)[0, 1] == first
    assert gae(REWARDS, torch.zeros_like(REWARDS), MASK, gamma=gamma, gae_lambda=gamma)[0][0, 1] == first


@pytest.mark.parametrize("bad", [-0.01, 1.01])
def test_what_lies_beyond_the_ranges_is_refused(bad: float) -> None:
    for function in (rewards_to_go, full_return, partial(gae, REWARDS, gae_lambda=1.0)):
        with pytest.raises(ValueError, match=f"gamma is {bad}"):
            function(REWARDS, MASK, gamma=bad)
    with pytest.raises(ValueError, match=f"gae_lambda is {bad}"):
        gae(REWARDS, REWARDS, MASK, gamma=1.0, gae_lambda=bad)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in ARGUMENTS.items() for name in names])
def test_each_tensor_must_have_the_shape_of_the_others(kind: str, name: str) -> None:
    # A width of 1 would broadcast in silence.
    tensors = {key: tensor_for(key) for key in ARGUMENTS[kind]}
    tensors[name] = tensors[name][:, :1]
    first, other = ARGUMENTS[kind][0], name if name != ARGUMENTS[kind][0] else ARGUMENTS[kind][1]
    with pytest.raises(ValueError, match=rf"^{other} has shape \(\d, \d\) but {first} has \(\d, \d\)"):
        FUNCTIONS[kind](**tensors)


@pytest.mark.parametrize("kind", ["gae", "to_go", "full", "shaped"])
def test_a_single_row_needs_both_dimensions(kind: str) -> None:
    tensors = {key: tensor_for(key)[0] for key in ARGUMENTS[kind]}
    with pytest.raises(ValueError, match=rf"^{ARGUMENTS[kind][0]} has shape \(3,\) but must have 2 dimensions"):
        FUNCTIONS[kind](**tensors)


def test_groups_need_both_dimensions_and_two_samples() -> None:
    for function in (all_equal, leave_one_out, partial(group_relative, divide_by_std=True)):
        with pytest.raises(ValueError, match=r"^scores has shape \(3,\) but must have 2 dimensions"):
            function(torch.rand(3))
    for function in (leave_one_out, partial(group_relative, divide_by_std=False)):
        with pytest.raises(ValueError, match="a group needs at least two samples"):
            function(torch.rand(3, 1))


def test_the_floor_is_added_to_the_spread_of_a_group() -> None:
    # Scores 0 and 2e-6: mean 1e-6, std sqrt(2) 1e-6, so A = +-1 / (sqrt(2) + 1).
    scores = torch.tensor([[0.0, 2.0]], dtype=torch.float64) * GROUP_STD_FLOOR
    found = group_relative(scores, divide_by_std=True)
    assert found[0].tolist() == pytest.approx([-(2**0.5 - 1), 2**0.5 - 1], abs=1e-9)
