"""The slots of the policy-gradient recipe: a name in `params.yaml` to a pure function, for each place that has choices.

REINFORCE, PPO, RLOO, GRPO and DAPO are settings of these slots; `profiles/algorithms` has them by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor

from rlhf import distributed
from rlhf.advantages import full_return, gae, group_relative, in_groups, leave_one_out, rewards_to_go
from rlhf.kl import kl_k1, kl_k2, kl_k3
from rlhf.losses.aggregation import Aggregate, sequence_mean, sequence_sum, token_mean
from rlhf.losses.policy_gradient import (
    PolicyLoss,
    clipped_penalised_loss,
    clipped_policy_loss,
    importance_sampled_loss,
    penalised_loss,
    reinforce_loss,
)
from rlhf.masking import last_true_index, zero_outside
from rlhf.ppo_config import GROUP_ADVANTAGES, PENALISED, Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """What an estimator of advantages may read."""

    rewards: Tensor
    """Of tokens, 0 outside the response, reward units. [B, T]"""
    values: Tensor
    """V of the state in which the token was chosen, 0 without a value model, reward units. [B, T]"""
    mask: Tensor
    """True where the policy sampled the token. [B, T] bool"""
    place: Tensor
    """A response's place in the order of asking; those of one prompt follow each other. [B] int64"""
    group_size: int
    """Responses to each prompt."""
    baseline: str
    """A name of `BASELINES`."""
    gamma: float
    gae_lambda: float


class Estimate(NamedTuple):
    """Advantages and the value model's targets, both 0 outside the response, reward units."""

    advantages: Tensor
    """[B, T]"""
    returns: Tensor
    """[B, T]"""


def _gae(credit: Credit) -> Estimate:
    found = gae(credit.rewards, credit.values, credit.mask, gamma=credit.gamma, gae_lambda=credit.gae_lambda)
    return Estimate(*found)


def _reward_to_go(credit: Credit) -> Estimate:
    returns = rewards_to_go(credit.rewards, credit.mask, gamma=credit.gamma)
    return Estimate(zero_outside(returns - BASELINES[credit.baseline](credit), credit.mask), returns)


def _full_return(credit: Credit) -> Estimate:
    whole = full_return(credit.rewards, credit.mask, gamma=credit.gamma)
    # A value model still learns what is to come: that of a token's state is the reward to go, not the whole return.
    returns = rewards_to_go(credit.rewards, credit.mask, gamma=credit.gamma)
    return Estimate(zero_outside(whole - BASELINES[credit.baseline](credit), credit.mask), returns)


def _grouped(compare: Callable[[Tensor], Tensor], credit: Credit) -> Estimate:
    """One advantage for all tokens of a response, by comparing the rewards of a prompt's responses."""
    totals = credit.rewards.sum(dim=1)
    advantages = in_groups(compare, totals, credit.place, size=credit.group_size)
    returns = rewards_to_go(credit.rewards, credit.mask, gamma=credit.gamma)
    return Estimate(zero_outside(advantages.unsqueeze(1).expand_as(credit.rewards), credit.mask), returns)


def _mean_return(credit: Credit) -> Tensor:
    """Mean return of the responses of all ranks: a constant, so it changes the variance and (nearly) not the mean."""
    whole = full_return(credit.rewards, credit.mask, gamma=credit.gamma)
    returns = whole.gather(1, last_true_index(credit.mask).unsqueeze(1))
    sums = distributed.reduce_sum({"return": float(returns.double().sum()), "count": float(len(returns))})
    return credit.rewards.new_full((1, 1), sums["return"] / sums["count"])


ADVANTAGES: dict[str, Callable[[Credit], Estimate]] = {
    "gae": _gae,
    "reward_to_go": _reward_to_go,
    "full_return": _full_return,
    "leave_one_out": partial(_grouped, leave_one_out),
    "group_relative": partial(_grouped, partial(group_relative, divide_by_std=True)),
    "group_centred": partial(_grouped, partial(group_relative, divide_by_std=False)),
}

BASELINES: dict[str, Callable[[Credit], Tensor]] = {
    "none": lambda credit: credit.rewards.new_zeros(1, 1),
    "mean": _mean_return,
    "value": lambda credit: credit.values,
}

KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def estimate(config: Config, *, rewards: Tensor, values: Tensor, mask: Tensor, place: Tensor) -> Estimate:
    """Advantages and returns by the estimator that the settings name.

    Args:
        config: settings.
        rewards: of tokens, reward units. [B, T]
        values: of the states in which they were chosen; 0 where nothing needs them. [B, T]
        mask: True where the policy sampled the token. [B, T] bool
        place: of each response in the order of asking. [B]
    """
    credit = Credit(
        rewards=zero_outside(rewards, mask), values=zero_outside(values, mask), mask=mask, place=place,
        group_size=config.group_size, baseline=config.baseline, gamma=config.gamma, gae_lambda=config.gae_lambda,
    )  # fmt: skip
    return ADVANTAGES[config.advantage](credit)


class Totals(NamedTuple):
    """What a mean over a whole minibatch divides by, over all micro-batches and ranks."""

    tokens: float
    """Tokens that the policy learns from."""
    sequences: float
    """Responses with such a token."""
    longest: float
    """Longest response allowed, tokens."""


Aggregation = Callable[[Tensor, Tensor, Totals], Tensor]
"""From a loss per token [B, T], its mask [B, T] and the totals to this micro-batch's share of the mean."""

AGGREGATIONS: dict[str, Aggregation] = {
    "token_mean": lambda loss, mask, totals: token_mean(loss, mask, total_tokens=totals.tokens),
    "sequence_mean": lambda loss, mask, totals: sequence_mean(loss, mask, total_sequences=totals.sequences),
    "sequence_sum": lambda loss, mask, totals: sequence_sum(
        loss, mask, length=totals.longest, total_sequences=totals.sequences
    ),
}


class PolicyObjective(Protocol):
    """From new and old log-probabilities, advantages and mask to a loss; `losses.policy_gradient` has them."""

    def __call__(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        *,
        total_tokens: float,
        aggregate: Aggregate | None,
    ) -> PolicyLoss:
        """Loss and diagnostics as shares of the means over the minibatch."""


def _clipped(config: Config, _: float) -> PolicyObjective:
    return partial(
        clipped_policy_loss, clip_range_low=config.clip_range, clip_range_high=config.clip_high,
        dual_clip=config.dual_clip,
    )  # fmt: skip


def _clipped_penalised(config: Config, step_kl_coef: float) -> PolicyObjective:
    return partial(
        clipped_penalised_loss, clip_range_low=config.clip_range, clip_range_high=config.clip_high,
        dual_clip=config.dual_clip, step_kl_coef=step_kl_coef,
    )  # fmt: skip


OBJECTIVES: dict[str, Callable[[Config, float], PolicyObjective]] = {
    "clipped": _clipped,
    "clipped_penalised": _clipped_penalised,
    "penalised": lambda _, coef: partial(penalised_loss, step_kl_coef=coef),
    "importance_sampled": lambda *_: importance_sampled_loss,
    "reinforce": lambda *_: reinforce_loss,
    # What `trust_region.trust_region_step` maximises; here for its diagnostics.
    "trust_region": lambda *_: importance_sampled_loss,
}
"""From the configuration and the price of the update's own KL to what is minimised."""


def cautions(config: Config) -> list[str]:
    """Sentences about settings that run but are known to be wrong or to waste something."""
    found = []
    if config.kl_coef > 0 and config.kl_place == "reward" and config.kl_estimator != "k1":
        found.append(
            f"kl_estimator {config.kl_estimator} in the reward changes what is optimised: only k1's mean over samples "
            "has the gradient of the KL there (Schulman 2020)"
        )
    if config.kl_coef > 0 and config.kl_place == "loss" and config.kl_estimator == "k3":
        found.append(
            "kl_estimator k3 in the loss is GRPO's choice; its mean gradient is that of KL(reference || policy), and "
            "k2's that of KL(policy || reference) (Schulman 2020)"
        )
    several = config.epochs > 1 or config.step_rollouts < config.rollouts
    if config.objective == "reinforce" and several:
        found.append(
            "objective reinforce takes several steps on one batch of samples, and all but the first are biased; set "
            "epochs 1 and minibatch = rollouts, or objective importance_sampled"
        )
    if config.advantage in GROUP_ADVANTAGES and config.whiten and config.advantage == "group_relative":
        found.append("advantage group_relative is already divided by each group's spread; whiten does it once more")
    if config.objective in PENALISED and config.step_kl_coef == 0:
        found.append(f"objective {config.objective} with step_kl_coef 0 has no penalty")
    return found
