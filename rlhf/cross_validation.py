"""Reward models by cross-validation: every pair is scored by a model that never saw its prompt.

The models are trained as the stage `reward` trains its own (same start, same losses, same schedule), each on all folds
but one. What they think of the fold that was left out is honest about its labels: no model has learnt them by heart.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlhf import matmul
from rlhf.checkpoint import Checkpoints
from rlhf.device import choose_device, make_reproducible
from rlhf.errors import BadInput
from rlhf.models import context_length, load_policy
from rlhf.monitor import Monitor
from rlhf.preferences import encode_pairs
from rlhf.reward_config import Config
from rlhf.reward_training import Work, train_member
from rlhf.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

NAME = "denoise"
"""What progress is reported as; there is no such stage, so nothing is kept between runs."""


class OutOfFold(NamedTuple):
    """What models that never saw a pair think of it."""

    margins: torch.Tensor
    """Raw score of chosen minus raw score of rejected. [N] float64"""
    skipped: int
    """Updates that were left out because a gradient was not finite, over all folds."""


def out_of_fold_margins(
    records: Sequence[dict[str, Any]], fold_of: Sequence[int], *, config: Config, sft: Path, seed: int
) -> OutOfFold:
    """Train one reward model per fold, on the other folds, and score the fold with it.

    Args:
        records: pair records.
        fold_of: the fold of each, from 0; no two folds share a prompt.
        config: of the reward model; `max_pairs` and the size of an ensemble are not looked at.
        sft: folder of the policy that the reward models start from.
        seed: head weights and order of the pairs; fold k uses seed + k.

    Returns:
        Margins in the order of the records.

    Raises:
        BadInput: a fold leaves nothing to train on, or there is no usable policy.
        StageFailed: training diverged.
    """
    tokenizer = load_tokenizer(sft)
    matmul.choose(config.engine.matmul)
    policy = load_policy(sft, device=choose_device())
    limit = min(config.max_tokens, context_length(policy) or config.max_tokens)
    margins, skipped = torch.zeros(len(records), dtype=torch.float64), 0
    folds = sorted(set(fold_of))
    for fold in folds:
        inside = [place for place, own in enumerate(fold_of) if own == fold]
        others = [record for record, own in zip(records, fold_of, strict=True) if own != fold]
        train = encode_pairs(tokenizer, others, max_tokens=limit)
        if not train:
            raise BadInput(
                f"fold {fold}: none of the {len(others)} other pairs fits {limit} tokens; raise reward.max_tokens"
            )
        make_reproducible(seed + fold)
        work = Work(
            config=replace(config, members=1, member_share=1.0), seed=seed + fold, sft=sft, policy=policy,
            tokenizer=tokenizer, train=train, dev=[], monitor=Monitor(NAME, 0), checkpoints=Checkpoints(NAME),
        )  # fmt: skip
        work.monitor.total = len(work.plan(0)[1])
        engine, model = train_member(work, 0, None)
        skipped += engine.skipped
        scores = work.scorer(model.eval()).score_pairs([records[place] for place in inside])
        margins[inside] = torch.tensor([chosen - rejected for chosen, rejected in scores], dtype=torch.float64)
        right = float((margins[inside] > 0).double().mean())
        log.info("fold %d of %d: agrees with %.3f of %d labels", fold + 1, len(folds), right, len(inside))
    return OutOfFold(margins, skipped)
