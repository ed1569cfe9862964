"""Training one reward model: a member of an ensemble, or the only one."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import distributed
from rlhf.adapters import Lora
from rlhf.batches import plan_run
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.checkpoint_file import sync_tree
from rlhf.device import autocast, choose_device, generator, make_reproducible
from rlhf.engine import Engine, prepare
from rlhf.errors import BadInput
from rlhf.evaluation.judging import Scorer, pair_metrics
from rlhf.losses.rankings import MOST_TIED
from rlhf.micro_batches import parts_of
from rlhf.monitor import Monitor
from rlhf.preferences import Pair, Ranking
from rlhf.reward_batch import judged_tokens, losses, with_swaps
from rlhf.reward_config import Config
from rlhf.reward_model import RewardModel
from rlhf.row_views import View
from rlhf.schedules import cosine
from rlhf.streams import random_source
from rlhf.tokenizer import pad_of
from rlhf.writing import writing

CURVE_ROWS = 200
"""Rows of a member's curve, about."""
EVALUATION_BATCH = 64
MEASURED = ("loss", "accuracy", "margin", "swap_loss", "swap_accuracy")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What the members of an ensemble share."""

    config: Config
    seed: int
    """Of the first member; those of the others are derived from it."""
    sft: Path
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Pair | Ranking]
    dev: Sequence[dict[str, Any]]
    """Held-out pairs, looked at once an epoch."""
    monitor: Monitor
    checkpoints: Checkpoints

    def plan(self, member: int) -> tuple[Sequence[Pair | Ranking], list[list[int]], int]:
        """What a member is trained on, its batches as indices into that, and how many batches make an epoch."""
        rows = member_rows(len(self.train), self.config.member_share, self.seed, member)
        train = View(self.train, rows)
        order = generator(member_seed(self.seed, member))
        lengths = [element.longest for element in train]
        return train, *plan_run(lengths, self.config.batch_size, epochs=self.config.epochs, generator=order)

    def scorer(self, model: RewardModel) -> Scorer:
        """The model with what it needs to read text."""
        return Scorer(model=model, tokenizer=self.tokenizer, batch=EVALUATION_BATCH, precision=self.config.precision)


def member_seed(seed: int, member: int) -> int:
    """Seed of a member; the first has the stage's own, so an ensemble's first member is the model trained alone."""
    return int(torch.randint(2**31 - 1, (), generator=random_source(seed, member))) if member else seed


def member_rows(count: int, share: float, seed: int, member: int) -> list[int]:
    """What a member is trained on: all of it, or a random share of it without repeats, in the order of the data.

    Args:
        count: pairs and rankings.
        share: of them, above 0 and at most 1.
        seed: of the stage.
        member: number of the member.
    """
    if share == 1:
        return list(range(count))
    drawn = torch.randperm(count, generator=random_source(seed, member, count))
    return sorted(drawn[: max(1, round(share * count))].tolist())


def refuse_wide_ties(train: Sequence[Pair | Ranking], where: str) -> None:
    """Refuse rankings that `plackett_luce_loss` could not count through.

    Raises:
        BadInput: more answers on one place than it takes.
    """
    rankings = [element for element in train if isinstance(element, Ranking)]
    widest = max((row.ranks.count(rank) for row in rankings for rank in row.ranks), default=0)
    if widest > MOST_TIED:
        raise BadInput(
            f"{where}: a ranking has {widest} answers on one place, wanted {MOST_TIED} at most; set ranking_loss: pairs"
        )


def train_member(work: Work, member: int, state: Mapping[str, Any] | None) -> tuple[Engine, RewardModel]:
    """Train a member from the policy's trunk and a fresh head, or from where a checkpoint of it left off.

    Args:
        work: data, settings, and where to report to.
        member: its number; the first is trained as the stage's only model would be.
        state: a checkpoint of this member, whose engine is None where it has not begun.

    Returns:
        The engine, and the model that it holds, its normaliser still 0 and 1.

    Raises:
        StageFailed: training diverged.
    """
    config = work.config
    if member:
        make_reproducible(member_seed(work.seed, member), deterministic=config.engine.deterministic)
    model = RewardModel.from_policy(work.sft, pooling=config.pooling, scale=config.scale, device=choose_device())
    if config.lora_rank:
        model.adapt(Lora(config.lora_rank, config.lora_alpha), seed=member_seed(work.seed, member))
    train, plan, per_epoch = work.plan(member)
    schedule = cosine(len(plan), warmup_fraction=config.warmup_fraction, final_fraction=config.final_lr_fraction)
    engine = prepare(
        model, learning_rate=config.learning_rate, schedule=schedule, max_grad_norm=config.max_grad_norm,
        precision=config.precision, weight_decay=config.weight_decay, settings=config.engine,
    )  # fmt: skip
    done, recent = 0, dict.fromkeys(MEASURED, 0.0)
    if state is not None and state["engine"] is not None:
        engine.load_state_dict(state["engine"])
        set_rng_state(state["rng"])
        done, recent = state["done"], state["recent"]
    every, before = max(1, len(plan) // CURVE_ROWS), member * len(plan)
    since = done % every
    for step, rows in enumerate(plan[done:], start=done + 1):
        update = _update(work, engine, train, rows, seed=member_seed(work.seed, member) + step, recent=recent)
        since += 1
        if step % every == 0 or step == len(plan):
            means = {name: value / since for name, value in distributed.reduce_sum(recent).items()}
            row = {**means, "epoch": step / per_epoch, **update}
            if work.dev and (step % per_epoch < every or step == len(plan)):
                with engine.gathered() as whole:
                    dev = pair_metrics(work.dev, work.scorer(whole).score_pairs(work.dev))
                row["dev_accuracy"] = dev.get("accuracy", math.nan)
            if config.members > 1:
                row["member"] = float(member)
            work.monitor.log(before + step, **row)
            recent, since = dict.fromkeys(recent, 0.0), 0
        if distributed.any_rank(work.checkpoints.due()):
            now = {"engine": engine.state_dict(), "rng": rng_state(), "rows": work.monitor.rows}
            work.checkpoints.save(before + member + step, {**now, "done": step, "recent": recent, "member": member})
    return engine, model


def keep_member(work: Work, model: RewardModel, member: int) -> None:
    """Keep a finished member with the checkpoints, and a checkpoint that says that the next one begins.

    Args:
        work: where checkpoints lie.
        model: with whole weights and its normaliser.
        member: its number.
    """
    folder = kept_member(work.checkpoints, member)
    if folder is not None:
        with writing(folder):
            model.save(folder, work.tokenizer)
            sync_tree(folder)  # the checkpoint that speaks of it is on the disk before the system may get round to this
        begins = {"member": member + 1, "done": 0, "engine": None, "rows": work.monitor.rows}
        updates = len(work.plan(member)[1])
        work.checkpoints.save((member + 1) * (updates + 1), begins)


def kept_member(checkpoints: Checkpoints, member: int) -> Path | None:
    """Where a finished member is kept until the whole ensemble is written; None where nothing is kept."""
    return checkpoints.folder / f"member-{member}" if checkpoints.folder is not None else None


def _update(
    work: Work,
    engine: Engine,
    train: Sequence[Pair | Ranking],
    rows: Sequence[int],
    *,
    seed: int,
    recent: dict[str, float],
) -> dict[str, float]:
    """One optimizer step on a global batch; adds what it measured to `recent`."""
    config = work.config
    share = config.swap_share if config.swap_weight > 0 else 0.0
    with autocast(work.policy.device, config.precision):
        examples = with_swaps(train, rows, work.policy, work.tokenizer, share=share, seed=seed)
    judged = distributed.reduce_sum({"tokens": float(judged_tokens(examples))})["tokens"]
    most = math.ceil(len(rows) / distributed.world_size())
    for part, weight, final in parts_of(examples, config.micro_batch, most=most):
        preference, swap = losses(
            engine, part, centering=config.centering, pad_id=pad_of(work.tokenizer), pairs=len(rows), tokens=judged,
            margin_coef=config.margin_coef, ranking_loss=config.ranking_loss,
        )  # fmt: skip
        engine.backward(weight * (preference.loss + config.swap_weight * swap.loss), final=final)
        recent["loss"] += weight * float(preference.loss.detach())
        recent["accuracy"] += weight * float(preference.accuracy) * len(part) / len(rows)
        recent["margin"] += weight * float(preference.margin)
        recent["swap_loss"] += weight * float(swap.loss.detach())
        recent["swap_accuracy"] += weight * float(swap.accuracy)
    return engine.step()
