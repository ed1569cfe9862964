"""From scores of whole responses to advantages of tokens.

Nothing here carries a gradient: rewards, returns and advantages are constants of the update that follows.

Values are aligned with the token they precede: `values[b, t]` is V of the state in which token t was chosen, which is
what a value model says at position t - 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.kl import kl_k1
from rlhf.masking import last_true_index, zero_outside
from rlhf.shapes import require_rank, require_same_shape

GROUP_STD_FLOOR = 1e-6


@torch.no_grad()
def shape_rewards(
    score: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    *,
    kl_coef: float,
    estimator: Callable[[Tensor, Tensor], Tensor] = kl_k1,
) -> Tensor:
    """Spread a response's score and its KL penalty over its tokens.

        reward_t = -kl_coef k1_t + [t is the last response token] score,    k1_t = logprobs_t - ref_logprobs_t

    k1 may be negative on a token, and only with it does the policy gradient of the summed penalty have the KL's own
    mean. The score lands on the last token that the policy emitted, not on the slot after it.

    Source: Ziegler et al. 2019, eq. 2, https://arxiv.org/abs/1909.08593

    Args:
        score: one for each response, reward units. [B]
        logprobs: under the policy that sampled, nats. [B, T]
        ref_logprobs: under the reference, nats. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        kl_coef: reward units per nat, at least 0.
        estimator: of the KL, per token: `kl_k1`, or another one of `rlhf.kl` to compare with.

    Returns:
        Rewards per token, 0 outside the response. [B, T]

    Raises:
        ValueError: shapes do not fit, or a row has no response token.
    """
    require_rank(2, logprobs=logprobs)
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, response_mask=response_mask)
    if score.shape != logprobs.shape[:1]:
        raise ValueError(f"score has shape {tuple(score.shape)} but logprobs have {tuple(logprobs.shape)}")
    last = last_true_index(response_mask).unsqueeze(1)
    rewards = zero_outside(-kl_coef * estimator(logprobs, ref_logprobs), response_mask)
    return rewards.scatter_add(1, last, score.to(rewards.dtype).unsqueeze(1))


@torch.no_grad()
def gae(
    token_rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation along the response tokens.

        delta_k = r_k + gamma V_{k+1} - V_k
        A_k = delta_k + gamma lambda A_{k+1}

    k counts response tokens only: the chain steps over every masked position, so no value of a pad leaks in. After
    the last response token the episode is over and V is 0.

    Source: Schulman et al. 2016, eqs. 11 to 16, https://arxiv.org/abs/1506.02438

    Args:
        token_rewards: reward for each token, reward units. [B, T]
        values: V of the state in which the token was chosen, reward units. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        gamma: discount per token, in [0, 1]; below 1 it punishes length.
        gae_lambda: 0 gives TD errors, 1 gives returns minus values; in [0, 1].

    Returns:
        Advantages and returns (advantages + values), both 0 outside the response. [B, T] each

    Raises:
        ValueError: shapes differ, or gamma or gae_lambda lies outside [0, 1].
    """
    _check_tokens(gamma, token_rewards=token_rewards, values=values, response_mask=response_mask)
    if not 0 <= gae_lambda <= 1:
        raise ValueError(f"gae_lambda is {gae_lambda} but must lie in [0, 1]")
    rewards, old_values = zero_outside(token_rewards, response_mask), zero_outside(values, response_mask)
    advantages = torch.zeros_like(old_values)
    next_value = next_advantage = torch.zeros_like(old_values[:, 0])
    for t in reversed(range(rewards.shape[1])):
        chosen = response_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - old_values[:, t]
        next_advantage = torch.where(chosen, delta + gamma * gae_lambda * next_advantage, next_advantage)
        next_value = torch.where(chosen, old_values[:, t], next_value)
        advantages[:, t] = next_advantage
    advantages = zero_outside(advantages, response_mask)
    return advantages, advantages + old_values


@torch.no_grad()
def rewards_to_go(token_rewards: Tensor, response_mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted sum of a token's own reward and all later ones.

        G_k = r_k + gamma G_{k+1}

    Args:
        token_rewards: reward for each token, reward units. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        gamma: discount per token, in [0, 1].

    Returns:
        Returns, 0 outside the response. [B, T]

    Raises:
        ValueError: shapes differ, or gamma lies outside [0, 1].
    """
    _check_tokens(gamma, token_rewards=token_rewards, response_mask=response_mask)
    rewards = zero_outside(token_rewards, response_mask)
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = torch.where(response_mask[:, t], rewards[:, t] + gamma * following, following)
        returns[:, t] = following
    return zero_outside(returns, response_mask)


@torch.no_grad()
def full_return(token_rewards: Tensor, response_mask: Tensor, *, gamma: float) -> Tensor:
    """Discounted return of the whole response, given to each of its tokens (plain REINFORCE).

        G = sum over k of gamma^k r_k,    k = 0 at the first response token

    Args:
        token_rewards: reward for each token, reward units. [B, T]
        response_mask: True where the policy sampled the token. [B, T] bool
        gamma: discount per token, in [0, 1].

    Returns:
        The return at every response token, 0 elsewhere. [B, T]

    Raises:
        ValueError: shapes differ, or gamma lies outside [0, 1].
    """
    _check_tokens(gamma, token_rewards=token_rewards, response_mask=response_mask)
    rewards = zero_outside(token_rewards, response_mask)
    steps = (response_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    total = (rewards * torch.full_like(rewards, gamma) ** steps).sum(dim=1, keepdim=True)
    return zero_outside(total.expand_as(rewards), response_mask)


@torch.no_grad()
def leave_one_out(scores: Tensor) -> Tensor:
    """Advantage over the mean of the other samples of the same prompt (RLOO).

        A_i = s_i - mean over j != i of s_j

    Source: Ahmadian et al. 2024, section 3.2, https://arxiv.org/abs/2402.14740

    Args:
        scores: of n samples for each of G prompts, reward units. [G, n]

    Returns:
        Advantages, one for each response; each row sums to 0, and is exactly 0 where all scores are equal. [G, n]

    Raises:
        ValueError: not two dimensions, or fewer than two samples in a group.
    """
    size = _group_size(scores)
    # The same as s_i - (sum - s_i) / (n - 1), but without the cancellation of a large common offset.
    return _centred(scores) * (size / (size - 1))


@torch.no_grad()
def group_relative(scores: Tensor, *, divide_by_std: bool) -> Tensor:
    """Advantage over the mean of all samples of the same prompt (GRPO).

        A_i = (s_i - mean) / (std + 1e-6)      or without the division

    The division makes prompts with nearly equal answers weigh as much as those with real differences (Liu et al. 2025,
    https://arxiv.org/abs/2503.20783); std divides by n - 1.

    Source: Shao et al. 2024, section 4.1, https://arxiv.org/abs/2402.03300

    Args:
        scores: of n samples for each of G prompts, reward units. [G, n]
        divide_by_std: True for GRPO as published, False for its form without that bias.

    Returns:
        Advantages, one for each response; exactly 0 in a group of equal scores. [G, n]

    Raises:
        ValueError: not two dimensions, or fewer than two samples in a group.
    """
    _group_size(scores)
    centred = _centred(scores)
    return centred / (scores.std(dim=1, keepdim=True) + GROUP_STD_FLOOR) if divide_by_std else centred


def all_equal(scores: Tensor) -> Tensor:
    """Groups that teach nothing, because all their samples score the same.

    Args:
        scores: of n samples for each of G prompts. [G, n]

    Returns:
        True where they are equal. [G] bool
    """
    require_rank(2, scores=scores)
    return (scores == scores[:, :1]).all(dim=1)


def in_groups(function: Callable[[Tensor], Tensor], scores: Tensor, place: Tensor, *, size: int) -> Tensor:
    """Apply a function of groups to responses that lie in any order.

    Args:
        function: from scores [G, n] to advantages [G, n].
        scores: one for each response. [B]
        place: a response's place in the order of asking, a permutation; places of one prompt follow each other. [B]
        size: n, responses to a prompt; divides B.

    Returns:
        The results in the order of `scores`. [B]

    Raises:
        ValueError: shapes differ, or size does not divide B.
    """
    require_rank(1, scores=scores)
    require_same_shape(scores=scores, place=place)
    if size < 1 or scores.shape[0] % size:
        raise ValueError(f"scores has shape {tuple(scores.shape)} but groups of {size} were wanted")
    asked = torch.empty_like(scores)
    asked[place] = scores
    return function(asked.view(-1, size)).reshape(-1)[place]


@torch.no_grad()
def overlong_price(lengths: Tensor, *, longest: int, buffer: int, penalty: float) -> Tensor:
    """A price on length that rises from 0 to `penalty` over the last tokens that are allowed (DAPO).

        price = penalty * clip((length - (longest - buffer)) / buffer, 0, 1)

    Source: Yu et al. 2025, eq. 13 ("soft overlong punishment"), https://arxiv.org/abs/2503.14476

    Args:
        lengths: of responses, tokens. [B]
        longest: longest response allowed, tokens.
        buffer: tokens over which the price rises, from 1 to `longest`.
        penalty: price at `longest`, reward units, at least 0.

    Returns:
        What to subtract from the scores, reward units. [B] float32

    Raises:
        ValueError: not one dimension, or buffer is out of range.
    """
    require_rank(1, lengths=lengths)
    if not 1 <= buffer <= longest:
        raise ValueError(f"buffer is {buffer} but must lie between 1 and longest = {longest}")
    return penalty * ((lengths.float() - (longest - buffer)) / buffer).clamp(0, 1)


def _centred(scores: Tensor) -> Tensor:
    # Rounding in the mean would otherwise survive in a group of equal scores, and be blown up by a division.
    return torch.where(all_equal(scores).unsqueeze(1), 0.0, scores - scores.mean(dim=1, keepdim=True))


def _check_tokens(gamma: float, **tensors: Tensor) -> None:
    require_rank(2, **tensors)
    require_same_shape(**tensors)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma} but must lie in [0, 1]")


def _group_size(scores: Tensor) -> int:
    require_rank(2, scores=scores)
    size = scores.shape[1]
    if size < 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)} but a group needs at least two samples")
    return size
