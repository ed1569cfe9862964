"""Policy gradients on a reward: one recipe for REINFORCE, PPO, TRPO, RLOO, GRPO, DAPO and what lies between them.

Each update samples responses to a batch of prompts, scores them, charges them for their divergence from the frozen
reference, estimates advantages, and takes steps on the policy and, where one is needed, on the value model. Which
estimator, objective, place of the KL and aggregation is a matter of settings: `rlhf.policy_gradient_slots` has the
choices, `profiles/algorithms` the published methods by name. The default is PPO with a clip and GAE.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf import distributed, matmul
from rlhf.adapters import Lora
from rlhf.advantages import shape_rewards
from rlhf.asking import Asker
from rlhf.batches import Batch
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.demonstration_stream import DemonstrationStream
from rlhf.device import autocast, choose_device, make_reproducible
from rlhf.engine import Engine, prepare
from rlhf.errors import BadInput
from rlhf.export import export_policy
from rlhf.group_sampling import describe_groups, until_groups_differ
from rlhf.improvement import Learners
from rlhf.kl import AdaptiveKl, FixedKl, StepKl
from rlhf.monitor import Monitor
from rlhf.outputs import write_jsonl, write_metrics
from rlhf.policy_gradient_slots import KL_ESTIMATORS, cautions, estimate
from rlhf.policy_update import make_objectives, take_steps
from rlhf.ppo_config import PENALISED, Config
from rlhf.reference import compare_with_reference
from rlhf.rewards.signals import Signals, build_signals
from rlhf.roles import Roles, load_roles
from rlhf.rollout import Rollout, describe, spread_globally, state_values, whiten_globally
from rlhf.row_blocks import in_row_blocks
from rlhf.schedules import linear
from rlhf.shared_value import HEAD, policy_and_values, policy_of
from rlhf.showcase import Question, read_questions, show
from rlhf.streams import random_source
from rlhf.summary import final_and_best

log = logging.getLogger(__name__)

__all__ = ["Config", "main"]


def main(
    config: Config, *, seed: int, stage: str, prompts: Path, sft: Path, reward: Path, demonstrations: Path, base: Path,
    model: Path, metrics: Path, curves: Path, samples: Path,
) -> None:  # fmt: skip
    """Train a policy by policy gradients.

    Args:
        config: settings.
        seed: seed of prompt order, sampling and minibatches.
        stage: name of the stage.
        prompts: folder with train.jsonl and dev.jsonl of prompt records.
        sft: folder of the policy to start from, which is also the reference.
        reward: folder of the reward model, which is also the start of a separate value model.
        demonstrations: folder with train.jsonl of demonstrations, read where `ptx_coef` is above 0.
        base: folder of base models, where signals `model:NAME` look for theirs.
        model: written: the policy.
        metrics: written: final and best numbers.
        curves: written: the numbers of every update.
        samples: written: answers to the same held-out prompts every `sample_every` updates.

    Raises:
        BadInput: unusable models, no prompt of usable length, or ranks that do not divide the batch.
        StageFailed: training diverged.
    """
    # 1. Roles: the policy, the frozen reference it started from, the signals that score, and values where needed.
    make_reproducible(seed, deterministic=config.engine.deterministic)
    matmul.choose(config.engine.matmul)
    device, rows = choose_device(), config.micro_batch or config.step_rollouts
    for sentence in cautions(config):
        log.warning("%s: %s", stage, sentence)
    roles = _roles(config, sft, reward, device, seed)
    signals = _signals(config, roles, reward, base, device, stage)

    # 2. Prompts to learn from, a few held-out ones to show answers to, and demonstrations to mix in.
    questions, held_out, dropped = _read_prompts(prompts, roles, config, stage)
    asker = Asker(roles=roles, signals=signals, questions=questions, config=config, seed=seed)
    ptx = _mixed_in(config, demonstrations, roles, device, seed) if config.ptx_coef > 0 else None

    # 3. Engines. Their rates follow updates and not optimizer steps, of which `target_kl` may save some.
    update, warmup = 0, config.warmup_updates / config.updates
    rates = linear(config.updates, warmup_fraction=warmup, final_fraction=config.final_lr_fraction)
    how: dict[str, Any] = {"max_grad_norm": config.max_grad_norm, "precision": config.precision}
    how |= {"schedule": lambda _: rates(update), "rates": {HEAD: config.value_learning_rate}, "settings": config.engine}
    policy, value_model = prepare(roles.learner, learning_rate=config.learning_rate, **how), None
    if roles.value_model is not None:
        value_model = prepare(roles.value_model, learning_rate=config.value_learning_rate, **how)
    kl, step_kl = _kl_controller(config), StepKl(config.step_kl_coef, config.step_kl_target)

    # 4. Continue where an earlier attempt was interrupted; else, with a curriculum, measure how hard the prompts are.
    monitor, checkpoints = Monitor(stage, config.updates), Checkpoints(stage)
    first, shown, curriculum = 0, list[dict[str, Any]](), list[int]()
    resumable: dict[str, Any] = {"policy": policy, "value_model": value_model, "kl": kl, "step_kl": step_kl}
    resumable = {name: part for name, part in resumable.items() if part is not None}
    if state := checkpoints.load():
        for name, part in resumable.items():
            part.load_state_dict(state[name])
        first, shown, curriculum = state["update"], state["shown"], state["curriculum"]
        monitor.restore(state["rows"])
        set_rng_state(state["random"])
    elif config.curriculum == "easy_first":
        curriculum = asker.curriculum(policy)

    for update in range(first, config.updates):
        # 5. Sample responses. Random numbers belong to the update and the rank: no state to carry.
        unscored = asker.ask(policy, update, asker.prompts_of(update, curriculum))

        # 6. Log-probabilities under the policy that sampled and under the reference; text is scored meanwhile.
        compare = partial(
            compare_with_reference, policy_of(policy.module), roles.reference, forbidden=roles.forbidden,
            temperature=config.temperature, rows=rows,
        )  # fmt: skip
        with autocast(device, config.precision):
            old = compare(unscored.sampled.batch)

        # 7. Score whole responses (one that was cut gets a fixed bad score instead); replace groups that teach nothing.
        answers, replaced = until_groups_differ(
            unscored.score(), partial(asker.ask, policy, update), asker.spare(update), size=config.group_size,
            rounds=config.dynamic_sampling, pad_id=roles.pad_id,
        )  # fmt: skip
        batch, captured, ended, place = answers.sampled
        mask = batch.response_mask

        with torch.no_grad(), autocast(device, config.precision):
            old = compare(batch) if replaced else old
            # 8. Rewards of tokens: on each the price of its divergence (unless the loss has it), on the last the score.
            rewards = shape_rewards(
                answers.scores, old.logprobs, old.ref_logprobs, mask, estimator=KL_ESTIMATORS[config.kl_estimator],
                kl_coef=kl.coef if config.kl_place == "reward" else 0.0,
            )  # fmt: skip
            # 9. Values, advantages, returns. Whitening comes last and leaves the returns alone.
            values = in_row_blocks(partial(_values, policy, value_model, roles, config), batch, rows)
            advantages, returns = estimate(config, rewards=rewards, values=values, mask=mask, place=place)
            learnable = mask & ended.unsqueeze(1) if config.mask_cut else mask
            spread = spread_globally(advantages, learnable)
            if config.whiten:
                advantages = whiten_globally(advantages, learnable)
        rollout = Rollout(
            batch=batch, logprobs=old.logprobs, values=values, advantages=advantages, returns=returns,
            ref_logprobs=old.ref_logprobs, learn_mask=learnable if config.mask_cut else None,
        )  # fmt: skip

        # 10. Take steps: epochs of minibatches, or one step as long as a trust region allows.
        objectives = make_objectives(
            config, roles.forbidden, ptx=ptx, update=update, kl_coef=kl.coef, step_kl_coef=step_kl.coef
        )  # fmt: skip
        trains = update >= config.value_warmup_updates or not config.needs_values
        learners = Learners(policy=policy, value_model=value_model, train_policy=trains)
        learnt = take_steps(learners, rollout, objectives, config, order=random_source(seed, update, 0))

        # 11. Measure, steer the two prices of divergence, show answers, keep a checkpoint.
        measured = describe(
            old, batch, captured, rewards=rewards, scores=answers.scores, ended=ended, returns=returns,
            values=values if config.needs_values else None, signals=answers.signals,
        )  # fmt: skip
        measured |= {"advantage_std": spread, **describe_groups(answers, replaced, size=config.group_size)}
        prices = {"kl_coef": kl.coef} | ({"step_kl_coef": step_kl.coef} if config.objective in PENALISED else {})
        monitor.log(update + 1, **measured, **learnt, **prices)
        kl.update(measured["kl"], config.rollouts)
        if trains and "step_kl" in learnt:
            step_kl.update(learnt["step_kl"])
        if (update + 1) % config.sample_every == 0 or update + 1 == config.updates:
            with policy.gathered() as whole, autocast(device, config.precision):
                shown += show(
                    policy_of(whole), roles.tokenizer, held_out or questions, step=update + 1, score=signals,
                    max_new_tokens=config.max_new_tokens, temperature=config.temperature, seed=seed,
                )  # fmt: skip
        if distributed.any_rank(checkpoints.due()):
            state = {name: part.state_dict() for name, part in resumable.items()} | {"curriculum": curriculum}
            state |= {"update": update + 1, "shown": shown, "rows": monitor.rows, "random": rng_state()}
            checkpoints.save(update + 1, state)

    # 12. Write the policy and what is known about it.
    report = {**final_and_best(monitor.rows, best="score"), "prompts": len(questions), "dropped_prompts": dropped}
    with policy.gathered() as whole:
        if distributed.is_main():
            export_policy(policy_of(whole), roles.tokenizer, model)
            write_jsonl(samples, shown)
            monitor.write_curve(curves)
            write_metrics(metrics, report)
    checkpoints.clear()


def _read_prompts(
    folder: Path, roles: Roles, config: Config, stage: str
) -> tuple[Sequence[Question], Sequence[Question], int]:
    """Prompts to learn from, held-out prompts, and how many of the former were too long."""
    limit = min(config.max_prompt_tokens, roles.room(config.max_new_tokens))
    questions, dropped = read_questions(folder / "train.jsonl", roles.tokenizer, max_tokens=limit)
    held_out, _ = read_questions(folder / "dev.jsonl", roles.tokenizer, max_tokens=limit)
    if not questions:
        raise BadInput(
            f"{folder}/train.jsonl: none of the {dropped} prompts fits {limit} tokens; add prompts, or raise "
            f"{stage}.max_prompt_tokens as far as the model's context allows"
        )
    ranks, groups = distributed.world_size(), config.rollouts // config.group_size
    if config.step_rollouts % ranks or groups % ranks:
        raise BadInput(
            f"{stage}.minibatch is {config.step_rollouts} and there are {groups} prompts in an update (rollouts / "
            f"group_size), wanted multiples of the {ranks} ranks"
        )
    return questions, held_out, dropped


def _roles(config: Config, sft: Path, reward: Path, device: torch.device, seed: int) -> Roles:
    """Only the models that the settings ask for."""
    return load_roles(
        sft, reward if "reward_model" in config.rewards else None, device=device, seed=seed, reference=config.reference,
        value=config.value_model if config.needs_values else "none",
        lora=Lora(config.lora_rank, config.lora_alpha) if config.lora_rank else None,
        value_lora=Lora(config.value_lora_rank, config.lora_alpha) if config.value_lora_rank else None,
        settings=config.engine,
    )  # fmt: skip


def _signals(config: Config, roles: Roles, reward: Path, base: Path, device: torch.device, stage: str) -> Signals:
    return build_signals(
        config.rewards, rule_settings=config.reward_rules, reward_model=roles.reward_model, reward=reward, base=base,
        combination=config.reward_combination, uncertainty_coef=config.uncertainty_coef,
        rows=config.micro_batch or config.step_rollouts, precision=config.precision, device=device, stage=stage,
    )  # fmt: skip


def _mixed_in(config: Config, folder: Path, roles: Roles, device: torch.device, seed: int) -> DemonstrationStream:
    return DemonstrationStream(
        folder, roles.tokenizer, max_tokens=roles.room(0), batch=config.ptx_batch, micro_batch=config.micro_batch,
        seed=seed, device=device,
    )  # fmt: skip


def _kl_controller(config: Config) -> AdaptiveKl | FixedKl:
    if config.kl_controller == "adaptive":
        return AdaptiveKl(config.kl_coef, config.kl_target, config.kl_horizon)
    return FixedKl(config.kl_coef)


def _values(policy: Engine, value_model: Engine | None, roles: Roles, config: Config, part: Batch) -> Tensor:
    """Values of the states of a batch: of a model of its own, of the shared trunk, or 0 where nothing needs them."""
    if value_model is not None:
        return state_values(value_model, part)
    if not config.needs_values:
        return torch.zeros(part.input_ids.shape, device=part.input_ids.device)
    found = policy_and_values(policy.module, part, temperature=config.temperature, forbidden=roles.forbidden)
    return found[1]
