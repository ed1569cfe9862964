"""Proximal policy optimisation: a policy learns to write what a reward model likes, and to stay near where it was.

Each update samples responses to a batch of prompts, scores them, charges every token for its divergence from the frozen
reference, estimates advantages with the value model, and takes a few epochs of clipped steps on both models.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlhf import distributed
from rlhf.advantages import gae, shape_rewards
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.device import PRECISIONS, autocast, choose_device, make_reproducible
from rlhf.engine import prepare
from rlhf.errors import BadInput
from rlhf.improvement import Objectives, improve
from rlhf.kl import AdaptiveKl, FixedKl
from rlhf.losses.policy_gradient import clipped_policy_loss
from rlhf.losses.value import clipped_value_loss
from rlhf.models import save_policy
from rlhf.monitor import Monitor
from rlhf.outputs import write_jsonl, write_metrics
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction
from rlhf.reference import compare_with_reference
from rlhf.roles import Roles, load_roles
from rlhf.rollout import (
    Rollout,
    describe,
    sample_responses,
    score_responses,
    state_values,
    whiten_globally,
)
from rlhf.row_blocks import in_row_blocks
from rlhf.schedules import linear
from rlhf.showcase import Question, read_questions, show
from rlhf.streams import prompt_indices, random_source
from rlhf.summary import final_and_best


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Parameters of the stage `ppo`. Top-k, top-p and other sampler modifiers do not exist: they break the ratio."""

    updates: int
    """Rounds of sampling and learning, at least 1."""
    rollouts: int
    """Prompts answered in an update, over all ranks."""
    epochs: int
    """Passes over the rollouts of an update, at least 1."""
    minibatch: int
    """Rollouts in an optimizer step, over all ranks; divides `rollouts`."""
    micro_batch: int | None
    """Rollouts in a forward pass on one rank; null means a rank's whole minibatch. Does not change results."""
    temperature: float
    """Divides the logits in sampling, training and reference alike, above 0."""
    max_new_tokens: int
    """Longest response, tokens."""
    max_prompt_tokens: int
    """Longer prompts are left out and counted, tokens."""
    learning_rate: float
    """Peak rate of the policy's AdamW, above 0."""
    value_learning_rate: float
    """Peak rate of the value model's AdamW, above 0."""
    warmup_updates: int
    """Updates in which both rates rise, less than `updates`."""
    final_lr_fraction: float
    """Share of the peak rates that is left at the end of the straight descent, in [0, 1]."""
    value_warmup_updates: int
    """First updates in which only the value model learns, less than `updates`."""
    clip_range: float
    """How far a token's probability ratio may move from 1 with effect, in (0, 1)."""
    value_clip: float | None
    """How far a value may move from its old one with effect, reward units, above 0; null for no clipping."""
    gamma: float
    """Discount per token, in [0, 1]; below 1 it punishes length."""
    gae_lambda: float
    """0 trusts the value model alone, 1 the sampled return alone; in [0, 1]."""
    kl_coef: float
    """Price of divergence from the reference, reward standard deviations per nat, at least 0; adaptive starts here."""
    kl_controller: str
    """"fixed", or "adaptive" to steer kl_coef towards `kl_target`."""
    kl_target: float
    """Wanted divergence of the adaptive controller, nats per response, above 0."""
    kl_horizon: float
    """Responses over which the adaptive controller takes its full step, above 0."""
    entropy_coef: float
    """Reward for randomness, advantage units per nat, at least 0."""
    missing_eos_penalty: float
    """A response that was cut scores this many reward standard deviations below 0, whatever it says; at least 0."""
    reward_clip: float | None
    """Scores are clamped to +- this many standard deviations, above 0; null for never."""
    target_kl: float | None
    """An update ends after an epoch that moved the policy by more than this, nats per token, above 0; null: never."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 means never."""
    sample_every: int
    """Updates between samples for people to read, at least 1."""
    precision: str
    """"auto" (bfloat16 on a GPU, float32 on a CPU), "float32" or "bfloat16"."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a field is out of range.
        """
        require_at_least(
            1, updates=self.updates, rollouts=self.rollouts, epochs=self.epochs, minibatch=self.minibatch,
            micro_batch=self.micro_batch, max_new_tokens=self.max_new_tokens,
            max_prompt_tokens=self.max_prompt_tokens, sample_every=self.sample_every,
        )  # fmt: skip
        require_at_least(
            0, warmup_updates=self.warmup_updates, value_warmup_updates=self.value_warmup_updates,
            kl_coef=self.kl_coef, entropy_coef=self.entropy_coef, missing_eos_penalty=self.missing_eos_penalty,
            max_grad_norm=self.max_grad_norm,
        )  # fmt: skip
        require_above_zero(
            temperature=self.temperature, learning_rate=self.learning_rate, clip_range=self.clip_range,
            value_learning_rate=self.value_learning_rate, kl_target=self.kl_target, kl_horizon=self.kl_horizon,
        )  # fmt: skip
        off = {"value_clip": self.value_clip, "reward_clip": self.reward_clip, "target_kl": self.target_kl}
        require_above_zero(**{name: value for name, value in off.items() if value is not None})
        require_fraction(
            gamma=self.gamma, gae_lambda=self.gae_lambda, final_lr_fraction=self.final_lr_fraction,
            clip_range=self.clip_range,
        )  # fmt: skip
        require_choice(("fixed", "adaptive"), kl_controller=self.kl_controller)
        require_choice(PRECISIONS, precision=self.precision)
        if self.rollouts % self.minibatch:
            raise ValueError(f"minibatch is {self.minibatch}, wanted a divisor of rollouts = {self.rollouts}")
        if max(self.warmup_updates, self.value_warmup_updates) >= self.updates:
            raise ValueError(f"warmup_updates and value_warmup_updates must be less than updates = {self.updates}")
        if self.kl_controller == "adaptive" and self.kl_coef == 0:
            raise ValueError("kl_coef is 0, wanted a number above 0 since the adaptive controller only multiplies it")


def main(
    config: Config, *, seed: int, stage: str, prompts: Path, sft: Path, reward: Path,
    model: Path, metrics: Path, curves: Path, samples: Path,
) -> None:  # fmt: skip
    """Train a policy by PPO.

    Args:
        config: settings.
        seed: seed of prompt order, sampling and minibatches.
        stage: name of the stage.
        prompts: folder with train.jsonl and dev.jsonl of prompt records.
        sft: folder of the policy to start from, which is also the reference.
        reward: folder of the reward model, which is also the start of the value model.
        model: written: the policy.
        metrics: written: final and best numbers.
        curves: written: the numbers of every update.
        samples: written: answers to the same held-out prompts every `sample_every` updates.

    Raises:
        BadInput: unusable models, no prompt of usable length, or ranks that do not divide the batch.
        StageFailed: training diverged.
    """
    # 1. Four roles: the policy, the frozen reference it started from, the frozen reward model, the value model.
    make_reproducible(seed)
    device = choose_device()
    roles = load_roles(sft, reward, device=device)

    # 2. Prompts to learn from, and a few held-out ones to show answers to.
    questions, held_out, dropped = _read_prompts(prompts, roles, config, stage)

    # 3. Engines. Their rates follow updates and not optimizer steps, of which `target_kl` may save some.
    update, warmup = 0, config.warmup_updates / config.updates
    rates = linear(config.updates, warmup_fraction=warmup, final_fraction=config.final_lr_fraction)
    settings: dict[str, Any] = {"max_grad_norm": config.max_grad_norm, "precision": config.precision}
    settings["schedule"] = lambda _: rates(update)
    policy = prepare(roles.policy, learning_rate=config.learning_rate, **settings)
    value_model = prepare(roles.value_model, learning_rate=config.value_learning_rate, **settings)
    kl = _kl_controller(config)

    # 4. What is minimised on each batch.
    clip = config.clip_range
    objectives = Objectives(
        policy=partial(clipped_policy_loss, clip_range_low=clip, clip_range_high=clip, dual_clip=None),
        value=partial(clipped_value_loss, clip_range=config.value_clip), entropy_coef=config.entropy_coef,
        temperature=config.temperature, forbidden=roles.forbidden, precision=config.precision,
    )  # fmt: skip

    # 5. Continue where an earlier attempt was interrupted.
    monitor, checkpoints = Monitor(stage, config.updates), Checkpoints(stage)
    first, shown, learners = 0, list[dict[str, Any]](), {"policy": policy, "value_model": value_model, "kl": kl}
    if state := checkpoints.load():
        for name, learner in learners.items():
            learner.load_state_dict(state[name])
        first, shown = state["update"], state["shown"]
        monitor.restore(state["rows"])
        set_rng_state(state["random"])

    for update in range(first, config.updates):
        # 6. Sample a response to each prompt. Random numbers belong to the update and the rank: no state to carry.
        window = prompt_indices(len(questions), start=update * config.rollouts, length=config.rollouts, seed=seed)
        asked = [questions[index].ids for index in distributed.share(window)]
        with policy.gathered() as whole, autocast(device, config.precision):
            batch, captured, ended = sample_responses(
                whole, asked, max_new_tokens=config.max_new_tokens, temperature=config.temperature, stops=roles.stops,
                forbidden=roles.forbidden, pad_id=roles.pad_id,
                source=random_source(seed, update, 1 + distributed.rank()),
            )  # fmt: skip
        mask, rows = batch.response_mask, config.micro_batch or config.minibatch

        with torch.no_grad(), autocast(device, config.precision):
            # 7. Score whole responses; one that was cut gets a fixed bad score instead.
            scores = score_responses(
                roles.score, batch, ended, missing_eos_penalty=config.missing_eos_penalty,
                reward_clip=config.reward_clip, rows=rows,
            )  # fmt: skip
            # 8. Log-probabilities under the policy that sampled and under the reference.
            old = compare_with_reference(
                policy.module, roles.reference, batch, roles.forbidden, temperature=config.temperature, rows=rows
            )
            # 9. Rewards of tokens: on each the price of its divergence, on the last also the score.
            rewards = shape_rewards(scores, old.logprobs, old.ref_logprobs, mask, kl_coef=kl.coef)
            # 10. Values, advantages, returns. Whitening comes last and leaves the returns alone.
            values = in_row_blocks(lambda part: state_values(value_model, part), batch, rows)
            advantages, returns = gae(rewards, values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
            whitened = whiten_globally(advantages, mask)
        rollout = Rollout(batch=batch, logprobs=old.logprobs, values=values, advantages=whitened, returns=returns)

        # 11. A few epochs of clipped steps on both models.
        learnt = improve(
            policy, value_model, rollout, objectives, epochs=config.epochs, minibatch=config.minibatch,
            micro_batch=config.micro_batch, target_kl=config.target_kl, order=random_source(seed, update, 0),
            train_policy=update >= config.value_warmup_updates,
        )  # fmt: skip

        # 12. Measure, steer the price of divergence, show answers, keep a checkpoint.
        measured = describe(
            old, batch, captured, rewards=rewards, scores=scores, ended=ended, values=values, returns=returns
        )
        monitor.log(update + 1, **measured, **learnt, kl_coef=kl.coef)
        kl.update(measured["kl"], config.rollouts)
        if (update + 1) % config.sample_every == 0 or update + 1 == config.updates:
            with policy.gathered() as whole, autocast(device, config.precision):
                shown += show(
                    whole, roles.tokenizer, held_out or questions, step=update + 1, score=roles.score,
                    max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed,
                )  # fmt: skip
        if distributed.any_rank(checkpoints.due()):
            state = {name: learner.state_dict() for name, learner in learners.items()}
            state |= {"update": update + 1, "shown": shown, "rows": monitor.rows, "random": rng_state()}
            checkpoints.save(update + 1, state)

    # 13. Write the policy and what is known about it.
    report = {**final_and_best(monitor.rows, best="score"), "prompts": len(questions), "dropped_prompts": dropped}
    with policy.gathered() as whole:
        if distributed.is_main():
            save_policy(whole, roles.tokenizer, model)
            write_jsonl(samples, shown)
            monitor.write_curve(curves)
            write_metrics(metrics, report)
    checkpoints.clear()


def _read_prompts(folder: Path, roles: Roles, config: Config, stage: str) -> tuple[list[Question], list[Question], int]:
    """Prompts to learn from, held-out prompts, and how many of the former were too long."""
    limit = min(config.max_prompt_tokens, roles.room(config.max_new_tokens))
    questions, dropped = read_questions(folder / "train.jsonl", roles.tokenizer, max_tokens=limit)
    held_out, _ = read_questions(folder / "dev.jsonl", roles.tokenizer, max_tokens=limit)
    if not questions:
        raise BadInput(
            f"{folder}/train.jsonl: none of the {dropped} prompts fits {limit} tokens; add prompts, or raise "
            f"{stage}.max_prompt_tokens as far as the model's context allows"
        )
    if config.minibatch % distributed.world_size():
        raise BadInput(
            f"{stage}.minibatch is {config.minibatch}, wanted a multiple of the {distributed.world_size()} ranks"
        )
    return questions, held_out, dropped


def _kl_controller(config: Config) -> AdaptiveKl | FixedKl:
    if config.kl_controller == "adaptive":
        return AdaptiveKl(config.kl_coef, config.kl_target, config.kl_horizon)
    return FixedKl(config.kl_coef)
