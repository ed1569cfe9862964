"""The steps of one update: what is minimised by the settings, and who takes the step."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from rlhf.batches import Batch
from rlhf.demonstration_stream import DemonstrationStream
from rlhf.device import autocast
from rlhf.distribution_shift import mean_step_kl
from rlhf.engine import Engine
from rlhf.improvement import Learners, Objectives, improve
from rlhf.logprobs import response_logprobs
from rlhf.losses.value import clipped_value_loss
from rlhf.policy_gradient_slots import AGGREGATIONS, KL_ESTIMATORS, OBJECTIVES
from rlhf.ppo_config import Config
from rlhf.rollout import Rollout
from rlhf.row_blocks import in_row_blocks
from rlhf.shared_value import policy_of
from rlhf.trust_region import trust_region_step


def make_objectives(
    config: Config,
    forbidden: Tensor,
    *,
    ptx: DemonstrationStream | None,
    update: int,
    kl_coef: float,
    step_kl_coef: float,
) -> Objectives:
    """What is minimised in an update.

    Args:
        config: settings.
        forbidden: True at tokens that are never sampled. [V] bool
        ptx: demonstrations to mix in, or None.
        update: its number, which says which demonstrations come next.
        kl_coef: price of divergence from the reference, now.
        step_kl_coef: price of divergence from the policy that sampled, now.
    """
    in_loss = config.kl_place == "loss" and config.kl_coef > 0
    first_step = update * config.epochs * (config.rollouts // config.step_rollouts)
    return Objectives(
        policy=OBJECTIVES[config.objective](config, step_kl_coef),
        value=partial(clipped_value_loss, clip_range=config.value_clip), value_coef=config.value_coef,
        entropy_coef=config.entropy_coef, temperature=config.temperature, forbidden=forbidden,
        precision=config.precision, aggregation=AGGREGATIONS[config.aggregation], longest=config.max_new_tokens,
        kl=KL_ESTIMATORS[config.kl_estimator] if in_loss else None, kl_coef=kl_coef,
        ptx=None if ptx is None else lambda step: ptx.parts(first_step + step), ptx_coef=config.ptx_coef,
    )  # fmt: skip


def take_steps(
    learners: Learners, rollout: Rollout, objectives: Objectives, config: Config, *, order: torch.Generator
) -> dict[str, float]:
    """Learn from one rollout: epochs of minibatches, or values so and the policy by one step in a trust region.

    Args:
        learners: whose steps.
        rollout: this rank's responses, by length.
        objectives: what is minimised.
        config: settings.
        order: source of the minibatches.

    Returns:
        Metrics; with a target for it or a trust region also `step_kl`, how far the update moved the policy, nats per
        token.
    """
    rows, by_region = config.micro_batch or config.step_rollouts, config.objective == "trust_region"
    learnt = improve(
        replace(learners, train_policy=learners.train_policy and not by_region), rollout, objectives,
        epochs=config.epochs, minibatch=config.step_rollouts, micro_batch=config.micro_batch,
        target_kl=config.target_kl, order=order,
    )  # fmt: skip
    if by_region and learners.train_policy:
        step = trust_region_step(
            policy_of(learners.policy.module), rollout, max_kl=config.trust_region_kl,
            damping=config.trust_region_damping, temperature=config.temperature, forbidden=objectives.forbidden,
            rows=rows, precision=config.precision,
        )  # fmt: skip
        return learnt | step | {"skipped": learnt["skipped"] + step["skipped"]}
    if config.step_kl_target is None:
        return learnt
    now = in_row_blocks(partial(_logprobs, learners.policy, objectives), rollout.batch, rows)
    return learnt | {"step_kl": mean_step_kl(now, rollout.logprobs, rollout.policy_mask)}


@torch.no_grad()
def _logprobs(policy: Engine, objectives: Objectives, part: Batch) -> Tensor:
    with autocast(policy.device, objectives.precision):
        return response_logprobs(
            policy_of(policy.module), part, temperature=objectives.temperature, forbidden=objectives.forbidden
        ).logprobs  # fmt: skip
