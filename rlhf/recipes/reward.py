"""Reward model by the Bradley-Terry likelihood of preference pairs; the stage `judge` is the same on other pairs.

The judge sees pairs that the reward model never sees, and starts from another seed, so that a policy which learns to
please the reward model has not learnt to please the judge. Rubric scores, where a record allows them, are only
measured against and never enter a loss.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.batches import collate, plan_run
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.device import PRECISIONS, autocast, choose_device, generator, make_reproducible
from rlhf.engine import prepare
from rlhf.errors import BadInput
from rlhf.evaluation.judging import Scorer, pair_metrics, probe_metrics
from rlhf.generation import generate
from rlhf.losses.bradley_terry import bradley_terry_loss
from rlhf.models import context_length, count_parameters, forbidden_ids, load_policy
from rlhf.monitor import Monitor
from rlhf.outputs import read_jsonl, write_metrics
from rlhf.preferences import Pair, encode_pairs
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction
from rlhf.reward_model import POOLINGS, RewardModel
from rlhf.schedules import cosine
from rlhf.tokenizer import encode_prompt, load_tokenizer, pad_of, stop_ids

log = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
CURVE_ROWS = 200
"""Rows of the curve, about."""
EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Parameters of the stages `reward` and `judge`."""

    pooling: str
    """Where the score is read: "last" response token, or "mean" or "sum" of the head over the response."""
    scale: float
    """Factor on the pooled head, above 0; with "sum" about 1 / 8, so that scores start out small."""
    learning_rate: float
    """Peak rate of AdamW, above 0."""
    batch_size: int
    """Pairs per update, over all ranks."""
    micro_batch: int | None
    """Pairs per forward pass on one rank; null means the whole share of the rank. Does not change results."""
    epochs: float
    """Passes over the pairs, above 0; may be a fraction. Large models overfit after 1."""
    centering: float
    """Weight of the squared sum of a pair's scores, which keeps scores near 0; 0 or more, usually 0.01."""
    warmup_fraction: float
    """Share of the updates in which the rate rises, in [0, 1)."""
    final_lr_fraction: float
    """Share of the peak rate that is left at the end of the cosine, in [0, 1]."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 means never."""
    weight_decay: float
    """Decoupled weight decay of AdamW, 0 or more."""
    max_tokens: int
    """Longest prompt + response, tokens; longer responses are cut, pairs with longer prompts dropped."""
    max_pairs: int | None
    """Train on the first so many pairs; null means all."""
    precision: str
    """Format of the trunk: "auto" (bfloat16 on a GPU, float32 on a CPU), "float32" or "bfloat16"; the head is fp32."""
    normalise_samples: int
    """Answers of the SFT policy that define score 0 (their mean) and 1 (one standard deviation), at least 2."""
    max_new_tokens: int
    """Longest such answer, tokens."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a field is out of range.
        """
        require_above_zero(learning_rate=self.learning_rate, epochs=self.epochs, scale=self.scale)
        require_at_least(1, batch_size=self.batch_size, micro_batch=self.micro_batch, max_tokens=self.max_tokens)
        require_at_least(1, max_pairs=self.max_pairs, max_new_tokens=self.max_new_tokens)
        require_at_least(2, normalise_samples=self.normalise_samples)
        require_at_least(0, centering=self.centering, max_grad_norm=self.max_grad_norm, weight_decay=self.weight_decay)
        require_fraction(warmup_fraction=self.warmup_fraction, final_lr_fraction=self.final_lr_fraction)
        require_choice(PRECISIONS, precision=self.precision)
        require_choice(POOLINGS, pooling=self.pooling)


def main(
    config: Config,
    *,
    seed: int,
    stage: str,
    pairs: Path,
    probes: Path,
    prompts: Path,
    sft: Path,
    model: Path,
    metrics: Path,
    curves: Path,
) -> None:
    """Train a reward model and write it with its metrics and its curve.

    Args:
        config: parameters.
        seed: head weights, order of the pairs and reference answers.
        stage: "reward" or "judge", for checkpoints and live metrics.
        pairs: folder with train.jsonl, dev.jsonl and test.jsonl of pairs.
        probes: folder of minimal pairs, whose dev and test splits are reported by the fact that was flipped.
        prompts: folder of prompts; the training ones are answered by the SFT policy for the normaliser.
        sft: folder of the policy that the reward model starts from.
        model: folder to write the reward model to.
        metrics: JSON file to write.
        curves: CSV file to write.

    Raises:
        BadInput: nothing to train on, or no usable policy.
        StageFailed: training diverged.
    """
    # 1. Records, model, token ids
    make_reproducible(seed)
    records = {split: list(read_jsonl(pairs / f"{split}.jsonl")) for split in SPLITS}
    tokenizer = load_tokenizer(sft)
    reward_model = RewardModel.from_policy(sft, pooling=config.pooling, scale=config.scale, device=choose_device())
    limit = min(config.max_tokens, context_length(reward_model.trunk) or config.max_tokens)
    train = encode_pairs(tokenizer, records["train"][: config.max_pairs], max_tokens=limit)
    if not train:
        raise BadInput(
            f"{pairs}/train.jsonl: no pair to train on in {len(records['train'])} records; name a file that has pairs "
            f"in validate.files, or raise {stage}.max_tokens ({config.max_tokens})"
        )

    # 2. The order of the whole run, the engine, and where an interrupted run left off
    lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in train]
    plan, per_epoch = plan_run(lengths, config.batch_size, epochs=config.epochs, generator=generator(seed))
    schedule = cosine(len(plan), warmup_fraction=config.warmup_fraction, final_fraction=config.final_lr_fraction)
    engine = prepare(
        reward_model,
        learning_rate=config.learning_rate,
        schedule=schedule,
        max_grad_norm=config.max_grad_norm,
        precision=config.precision,
        weight_decay=config.weight_decay,
    )
    monitor, checkpoints = Monitor(stage, len(plan)), Checkpoints(stage)
    scorer = Scorer(model=reward_model, tokenizer=tokenizer, batch=EVALUATION_BATCH, precision=config.precision)
    done, recent = 0, dict.fromkeys(("loss", "accuracy", "margin"), 0.0)
    state = checkpoints.load()
    if state is not None:
        engine.load_state_dict(state["engine"])
        set_rng_state(state["rng"])
        monitor.restore(state["rows"])
        done, recent = state["done"], state["recent"]

    # 3. Train
    every = max(1, len(plan) // CURVE_ROWS)
    since = done % every
    for step, rows in enumerate(plan[done:], start=done + 1):
        mine = distributed.share(rows)
        size = config.micro_batch or len(mine)
        for start in range(0, len(mine), size):
            part = [train[row] for row in mine[start : start + size]]
            chosen, rejected = score_pairs(engine, part, pad_id=pad_of(tokenizer))
            label = torch.tensor([pair.label for pair in part], device=chosen.device)
            result = bradley_terry_loss(
                chosen, rejected, label, margin=None, centering=config.centering, total_pairs=len(rows)
            )
            engine.backward(result.loss, final=start + size >= len(mine))
            recent["loss"] += float(result.loss.detach())
            recent["accuracy"] += float(result.accuracy) * len(part) / len(rows)
            recent["margin"] += float(result.margin)
        update = engine.step()
        since += 1
        if step % every == 0 or step == len(plan):
            row = {name: value / since for name, value in distributed.reduce_sum(recent).items()}
            row |= {"epoch": step / per_epoch, **update}
            if records["dev"] and (step % per_epoch < every or step == len(plan)):
                dev = pair_metrics(records["dev"], scorer.score_pairs(records["dev"]))
                row["dev_accuracy"] = dev.get("accuracy", math.nan)
            monitor.log(step, **row)
            recent, since = dict.fromkeys(recent, 0.0), 0
        if distributed.any_rank(checkpoints.due()):
            now = {"engine": engine.state_dict(), "rng": rng_state(), "rows": monitor.rows}
            checkpoints.save(step, {**now, "done": step, "recent": recent})

    # 4. Fix the zero and the unit of the score on answers of the SFT policy
    reward_model.mean, reward_model.std = reference_moments(config, scorer, sft, prompts, records["train"], seed)

    # 5. Measure, save
    report = {
        "parameters": count_parameters(reward_model),
        "updates": len(plan),
        "skipped_updates": engine.skipped,
        "train": {**{name: monitor.rows[-1][name] for name in recent}, "pairs": len(train)},
        **held_out_metrics(scorer, records, [row for split in SPLITS for row in read_jsonl(probes / f"{split}.jsonl")]),
    }
    with engine.gathered() as whole:
        if distributed.is_main():
            whole.save(model, tokenizer)
            monitor.write_curve(curves)
            write_metrics(metrics, report)
    checkpoints.clear()
    log.info("%s: accuracy %s on test, %s on dev", stage, *(_accuracy(report, split) for split in ("test", "dev")))


def score_pairs(engine: Any, part: Sequence[Pair], *, pad_id: int) -> tuple[Tensor, Tensor]:
    """Raw scores of chosen and rejected responses, computed in one batch so that both see the same arithmetic.

    Returns:
        Scores of the chosen and of the rejected responses. [B], [B]
    """
    prompts = [pair.prompt for pair in part]
    responses = [*(pair.chosen for pair in part), *(pair.rejected for pair in part)]
    batch = collate([*prompts, *prompts], responses, pad_id=pad_id).to(engine.device)
    scores: Tensor = engine(batch.input_ids, batch.attention_mask, batch.response_mask)
    return scores[: len(part)], scores[len(part) :]


def held_out_metrics(
    scorer: Scorer, records: dict[str, list[dict[str, Any]]], probes: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Agreement with labels and rubric on held-out pairs, and with the one flipped fact on minimal pairs.

    Args:
        scorer: the trained model with its normaliser.
        records: pairs by split.
        probes: minimal pairs of all splits, since nothing is trained on them.
    """
    report: dict[str, Any] = {"normaliser": {"mean": scorer.model.mean, "std": scorer.model.std}}
    for split in ("dev", "test"):
        if records[split]:
            scores = scorer.score_pairs(records[split])
            report[split] = pair_metrics(records[split], scores, scale=scorer.model.std)
            report[split]["margin"] = sum(chosen - rejected for chosen, rejected in scores) / len(scores)
    if probes:
        report["probes"] = probe_metrics(probes, scorer.score_pairs(probes))
    return report


def reference_moments(
    config: Config, scorer: Scorer, sft: Path, prompts: Path, pairs: Sequence[dict[str, Any]], seed: int
) -> tuple[float, float]:
    """Mean and standard deviation of the raw score of the SFT policy's own answers; a spread of 0 counts as 1.

    Args:
        config: parameters.
        scorer: the trained model, its normaliser still 0 and 1.
        sft: folder of the policy.
        prompts: folder of prompts; where its training split is empty, the prompts of the pairs are used.
        pairs: training pairs.
        seed: of the answers.

    Raises:
        BadInput: every prompt is too long to be answered.
    """
    policy = load_policy(sft, device=choose_device())
    room = (context_length(policy) or 2**31) - config.max_new_tokens
    found = list(read_jsonl(prompts / "train.jsonl")) or pairs
    texts = [record["prompt"] for record in found[: config.normalise_samples]]
    encoded = [ids for text in texts if len(ids := encode_prompt(scorer.tokenizer, text)) <= room]
    if not encoded:
        raise BadInput(f"{prompts}: no prompt leaves room for {config.max_new_tokens} new tokens; lower max_new_tokens")
    encoded = [encoded[index % len(encoded)] for index in range(config.normalise_samples)]
    draws, responses = generator(seed), []
    for start in range(0, len(encoded), EVALUATION_BATCH):
        with autocast(policy.device, config.precision):
            result = generate(
                policy,
                encoded[start : start + EVALUATION_BATCH],
                max_new_tokens=config.max_new_tokens,
                temperature=1.0,
                stop_ids=stop_ids(scorer.tokenizer, policy),
                forbidden=forbidden_ids(scorer.tokenizer, policy),
                pad_id=pad_of(scorer.tokenizer),
                generator=draws,
            )
        responses += result.responses
    raw = torch.tensor(scorer.score_ids(encoded, responses), dtype=torch.float64)
    return float(raw.mean()), float(raw.std()) or 1.0


def _accuracy(report: dict[str, Any], split: str) -> str:
    value = report.get(split, {}).get("accuracy")
    return "unknown" if value is None else f"{value:.3f}"
