"""Learning from one rollout: epochs of seeded minibatches, each one optimizer step of policy and value model.

Which objective is stepped on is the caller's choice; here is only what all of them share: minibatches over all ranks,
micro-batches that do not change the result, and what is measured on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.batches import shuffled_batches
from rlhf.device import autocast
from rlhf.engine import Engine
from rlhf.logprobs import response_logprobs
from rlhf.losses.aggregation import token_mean
from rlhf.losses.policy_gradient import PolicyLoss
from rlhf.losses.value import ValueLoss
from rlhf.rollout import Rollout, state_values


class PolicyObjective(Protocol):
    """From new and old log-probabilities, advantages and mask to a loss; `losses.policy_gradient` has some."""

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, response_mask: Tensor, *, total_tokens: float
    ) -> PolicyLoss:
        """Loss and diagnostics as shares of the mean over `total_tokens`."""


class ValueObjective(Protocol):
    """From new and old values, returns and mask to a loss; `losses.value` has one."""

    def __call__(
        self, values: Tensor, old_values: Tensor, returns: Tensor, response_mask: Tensor, *, total_tokens: float
    ) -> ValueLoss:
        """Loss and diagnostics as shares of the mean over `total_tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What is minimised, and over which distribution of tokens."""

    policy: PolicyObjective
    value: ValueObjective
    entropy_coef: float
    """Reward for randomness, advantage units per nat, at least 0."""
    temperature: float
    """That of the sampling; above 0."""
    forbidden: Tensor
    """True at tokens that are never sampled. [V] bool"""
    precision: str
    """Number format of the forward passes, as in `device.autocast`."""


def improve(
    policy: Engine,
    value_model: Engine,
    rollout: Rollout,
    objectives: Objectives,
    *,
    epochs: int,
    minibatch: int,
    micro_batch: int | None,
    target_kl: float | None,
    order: torch.Generator,
    train_policy: bool,
) -> dict[str, float]:
    """Take the optimizer steps of one update.

    Args:
        policy: engine of the policy.
        value_model: engine of the value model.
        rollout: this rank's responses, by length.
        objectives: what is minimised.
        epochs: passes over the rollout.
        minibatch: responses of an optimizer step, over all ranks.
        micro_batch: responses of a forward pass on one rank; None for all of the minibatch.
        target_kl: stop after an epoch in which the policy was this far from the one that sampled, nats per token.
        order: source of the minibatches.
        train_policy: False while only the value model warms up.

    Returns:
        Means over the steps taken; and `first_ratio`, the largest |ratio - 1| before the first step (summed over the
        ranks): 0 but for rounding, or the log-probabilities of sampling and training differ.
    """
    steps: list[dict[str, float]] = []
    first_ratio = 0.0
    for _ in range(epochs):
        chosen = shuffled_batches(len(rollout), minibatch // distributed.world_size(), generator=order)
        for rows in chosen:
            # Rollouts lie by length, so sorted rows give micro-batches of like length.
            batch = rollout.take(sorted(rows))
            tokens = distributed.reduce_sum({"tokens": float(batch.batch.response_mask.sum())})["tokens"]
            parts = batch.parts(micro_batch)
            found = [
                _backward(policy, value_model, part, objectives, tokens, part is parts[-1], train_policy)
                for part in parts
            ]
            largest = max(part.pop("ratio_error") for part in found)
            if not steps:
                first_ratio = distributed.reduce_sum({"ratio_error": largest})["ratio_error"]
            step = distributed.reduce_sum({name: sum(part[name] for part in found) for name in found[0]})
            step["value_grad_norm"] = value_model.step()["grad_norm"]
            if train_policy:
                step |= policy.step()
            steps.append(step)
        if target_kl is not None and _mean(steps[-len(chosen) :], "approx_kl") > target_kl:
            break
    means = {name: _mean(steps, name) for name in steps[0] if name != "skipped"}
    return {**means, "first_ratio": first_ratio, "steps": len(steps), "skipped": policy.skipped + value_model.skipped}


def _backward(
    policy: Engine,
    value_model: Engine,
    part: Rollout,
    objectives: Objectives,
    tokens: float,
    final: bool,
    train_policy: bool,
) -> dict[str, float]:
    """Add the gradients of one micro-batch to both models; returns its shares of the minibatch's means."""
    mask = part.batch.response_mask
    with autocast(policy.device, objectives.precision), torch.set_grad_enabled(train_policy):
        now = response_logprobs(
            policy.module, part.batch, temperature=objectives.temperature, forbidden=objectives.forbidden,
            with_entropy=objectives.entropy_coef > 0,
        )  # fmt: skip
    ours = objectives.policy(now.logprobs, part.logprobs, part.advantages, mask, total_tokens=tokens)
    loss = ours.loss
    if now.entropy is not None:
        # Subtracted, since the loss is minimised and randomness is wanted.
        loss = loss - objectives.entropy_coef * token_mean(now.entropy, mask, total_tokens=tokens)
    if train_policy:
        policy.backward(loss, final=final)
    values = state_values(value_model, part.batch)
    theirs = objectives.value(values, part.values, part.returns, mask, total_tokens=tokens)
    value_model.backward(theirs.loss, final=final)
    return {
        "policy_loss": float(loss.detach()),
        "value_loss": float(theirs.loss.detach()),
        "clip_fraction": float(ours.clip_fraction),
        "value_clip_fraction": float(theirs.clip_fraction),
        "approx_kl": float(ours.approx_kl),
        "ratio_error": float(ours.max_ratio_error),
    }


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)
