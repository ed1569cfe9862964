"""Learning from one rollout: epochs of seeded minibatches, each one optimizer step of policy and value model.

Which objective is stepped on is the caller's choice; here is only what all of them share: minibatches over all ranks,
micro-batches that do not change the result, and what is measured on the way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.batches import Batch, shuffled_batches
from rlhf.device import autocast
from rlhf.distribution_shift import effective_sizes, weight_sums
from rlhf.engine import Engine
from rlhf.logprobs import TokenLogprobs, response_logprobs
from rlhf.losses.aggregation import token_mean
from rlhf.losses.language_model import completion_loss
from rlhf.losses.value import ValueLoss
from rlhf.policy_gradient_slots import AGGREGATIONS, Aggregation, PolicyObjective, Totals
from rlhf.rollout import Rollout, state_values
from rlhf.shared_value import PolicyWithValue, policy_and_values, policy_of

PER_EPOCH = ("approx_kl", "clip_fraction")


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
    aggregation: Aggregation = AGGREGATIONS["token_mean"]
    """From the policy's loss per token to a number."""
    longest: float = 1.0
    """Longest response allowed, tokens; read by one of the aggregations."""
    kl: Callable[[Tensor, Tensor], Tensor] | None = None
    """Estimator of the KL to the reference that is part of the loss; None when it is not."""
    kl_coef: float = 0.0
    """Weight of it, advantage units per nat."""
    value_coef: float = 1.0
    """Weight of the value loss where the value head shares the policy's trunk."""
    ptx: Callable[[int], list[Batch]] | None = None
    """This rank's demonstrations for each optimizer step of the update, in micro-batches; None for none."""
    ptx_coef: float = 0.0
    """Weight of the language-model loss on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learners:
    """Who learns in this update."""

    policy: Engine
    """Of the policy, or of the policy with a value head."""
    value_model: Engine | None
    """Of a value model of its own; None when the head is shared or nothing asks for values."""
    train_policy: bool
    """False while only values warm up."""

    @property
    def shared(self) -> bool:
        """Whether the value head sits on the policy's trunk."""
        return isinstance(self.policy.module, PolicyWithValue)


def improve(
    learners: Learners,
    rollout: Rollout,
    objectives: Objectives,
    *,
    epochs: int,
    minibatch: int,
    micro_batch: int | None,
    target_kl: float | None,
    order: torch.Generator,
) -> dict[str, float]:
    """Take the optimizer steps of one update.

    Args:
        learners: whose steps.
        rollout: this rank's responses, by length.
        objectives: what is minimised.
        epochs: passes over the rollout.
        minibatch: responses of an optimizer step, over all ranks.
        micro_batch: responses of a forward pass on one rank; None for all of the minibatch.
        target_kl: stop after an epoch in which the policy was this far from the one that sampled, nats per token.
        order: source of the minibatches.

    Returns:
        Means over the steps taken, of some also by epoch (`..._epoch_1`); and `first_ratio`, the largest |ratio - 1|
        before the first step on any rank: 0 but for rounding, or the log-probabilities of sampling and training
        differ.
    """
    steps: list[dict[str, float]] = []
    by_epoch: dict[str, float] = {}
    first_ratio = 0.0
    for epoch in range(1, epochs + 1):
        chosen = shuffled_batches(len(rollout), minibatch // distributed.world_size(), generator=order)
        weights: dict[str, float] = {}
        for rows in chosen:
            # Rollouts lie by length, so sorted rows give micro-batches of like length.
            parts = rollout.take(sorted(rows)).parts(micro_batch)
            step, shift, largest = _step(learners, parts, objectives, len(steps))
            if not steps:
                first_ratio = max(distributed.gather_objects(largest))
            weights = {name: weights.get(name, 0.0) + value for name, value in shift.items()}
            steps.append(step)
        latest = {**{name: _mean(steps[-len(chosen) :], name) for name in PER_EPOCH}, **effective_sizes(weights)}
        by_epoch |= {f"{name}_epoch_{epoch}": value for name, value in latest.items()}
        if target_kl is not None and latest["approx_kl"] > target_kl:
            break
    names = [name for name in dict.fromkeys(name for step in steps for name in step) if name != "skipped"]
    means = {name: _mean(steps, name) for name in names}
    skipped = learners.policy.skipped + (learners.value_model.skipped if learners.value_model else 0)
    return {**means, "first_ratio": first_ratio, "steps": len(steps), "skipped": skipped, **by_epoch}


def _step(
    learners: Learners, parts: Sequence[Rollout], objectives: Objectives, number: int
) -> tuple[dict[str, float], dict[str, float], float]:
    """One optimizer step: its metrics, its sums of importance weights, and its largest |ratio - 1| on this rank."""
    masks = [(part.batch.response_mask, part.policy_mask) for part in parts]
    sums = distributed.reduce_sum({
        "tokens": float(sum(int(mask.sum()) for mask, _ in masks)),
        "learnt": float(sum(int(mask.sum()) for _, mask in masks)),
        "sequences": float(sum(int(mask.any(dim=1).sum()) for _, mask in masks)),
    })  # fmt: skip
    totals = Totals(sums["learnt"], sums["sequences"], objectives.longest)
    moves = learners.train_policy and totals.tokens > 0
    demonstrated = _demonstrations(learners.policy, objectives, number) if moves else {}
    found = [
        _backward(learners, part, objectives, totals, tokens=sums["tokens"], moves=moves, final=part is parts[-1])
        for part in parts
    ]
    largest = max(part.pop("ratio_error") for part in found)
    step = distributed.reduce_sum({name: sum(part[name] for part in found) for name in found[0]})
    shift = {name.removeprefix("shift_"): step.pop(name) for name in list(step) if name.startswith("shift_")}
    step |= demonstrated
    if any(part.learn_mask is not None for part in parts):
        step["idle_steps"] = float(totals.tokens == 0)
    if learners.value_model is not None:
        step["value_grad_norm"] = learners.value_model.step()["grad_norm"]
    if moves or learners.shared:
        step |= learners.policy.step()
    return step, shift, largest


def _backward(
    learners: Learners,
    part: Rollout,
    objectives: Objectives,
    totals: Totals,
    *,
    tokens: float,
    moves: bool,
    final: bool,
) -> dict[str, float]:
    """Add the gradients of one micro-batch to the models; returns its shares of the minibatch's means."""
    now, values = _forward(learners, part, objectives, moves)
    loss, found = _policy_loss(now, part, objectives, totals)
    if values is not None:
        theirs = objectives.value(values, part.values, part.returns, part.batch.response_mask, total_tokens=tokens)
        found |= {"value_loss": float(theirs.loss.detach()), "value_clip_fraction": float(theirs.clip_fraction)}
        if learners.value_model is None:
            loss = objectives.value_coef * theirs.loss + (loss if moves else 0.0)  # in warm-up the head learns alone
        else:
            learners.value_model.backward(theirs.loss, final=final)
    if moves or learners.shared:
        learners.policy.backward(loss, final=final)
    shift = weight_sums(now.logprobs.detach(), part.logprobs, part.policy_mask)
    return found | {f"shift_{name}": value for name, value in shift.items()}


def _forward(
    learners: Learners, part: Rollout, objectives: Objectives, moves: bool
) -> tuple[TokenLogprobs, Tensor | None]:
    """Log-probabilities with their gradient where the policy moves, and values where something learns them."""
    policy, value_model = learners.policy, learners.value_model
    wanted: dict[str, Any] = {"temperature": objectives.temperature, "forbidden": objectives.forbidden}
    wanted["with_entropy"] = objectives.entropy_coef > 0
    if learners.shared:
        with autocast(policy.device, objectives.precision):
            return policy_and_values(policy.module, part.batch, train_trunk=moves, **wanted)
    with autocast(policy.device, objectives.precision), torch.set_grad_enabled(moves):
        now = response_logprobs(policy.module, part.batch, **wanted)
    return now, None if value_model is None else state_values(value_model, part.batch)


def _policy_loss(
    now: TokenLogprobs, part: Rollout, objectives: Objectives, totals: Totals
) -> tuple[Tensor, dict[str, float]]:
    """The objective, less the bonus for randomness, plus the price of divergence from the reference."""
    mask, measured = part.policy_mask, {} if objectives.kl is None else {"kl_loss": 0.0}
    if totals.tokens == 0:
        # Every response of this minibatch was cut and `mask_cut` is on: there is nothing to learn from.
        names = ("policy_loss", "clip_fraction", "approx_kl", "ratio_error", *measured)
        return torch.zeros((), device=mask.device), dict.fromkeys(names, 0.0)
    ours = objectives.policy(
        now.logprobs, part.logprobs, part.advantages, mask, total_tokens=totals.tokens,
        aggregate=lambda tokens, where: objectives.aggregation(tokens, where, totals),
    )  # fmt: skip
    loss = ours.loss
    if now.entropy is not None:
        # Subtracted, since the loss is minimised and randomness is wanted.
        loss = loss - objectives.entropy_coef * token_mean(now.entropy, mask, total_tokens=totals.tokens)
    if objectives.kl is not None:
        if part.ref_logprobs is None:
            raise ValueError("the KL is part of the loss, but the rollout has no ref_logprobs")
        divergence = objectives.aggregation(objectives.kl(now.logprobs, part.ref_logprobs), mask, totals)
        loss = loss + objectives.kl_coef * divergence
        measured["kl_loss"] = float(divergence.detach())
    return loss, {
        "policy_loss": float(loss.detach()),
        "clip_fraction": float(ours.clip_fraction),
        "approx_kl": float(ours.approx_kl),
        "ratio_error": float(ours.max_ratio_error),
        **measured,
    }


def _demonstrations(policy: Engine, objectives: Objectives, number: int) -> dict[str, float]:
    """Add the gradient of the language-model loss on demonstrations; before the policy's own, whose part is the last.

    The loss is that of supervised fine-tuning, at temperature 1.

    Source: Ouyang et al. 2022 (PPO-ptx), eq. 2, https://arxiv.org/abs/2203.02155
    """
    if objectives.ptx is None:
        return {}
    parts = objectives.ptx(number)
    total = distributed.reduce_sum({"tokens": float(sum(int(part.response_mask.sum()) for part in parts))})["tokens"]
    measured = 0.0
    for part in parts:
        with autocast(policy.device, objectives.precision):
            logprobs = response_logprobs(
                policy_of(policy.module), part, temperature=1.0, forbidden=objectives.forbidden
            ).logprobs  # fmt: skip
        loss = completion_loss(logprobs, part.response_mask, total_tokens=total)
        policy.backward(objectives.ptx_coef * loss, final=False)
        measured += float(loss.detach())
    return {"ptx_loss": distributed.reduce_sum({"loss": measured})["loss"]}


def _mean(rows: Sequence[dict[str, float]], name: str) -> float:
    having = [row[name] for row in rows if name in row]
    return sum(having) / len(having)
