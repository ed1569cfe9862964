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

from rlhf import distributed
from rlhf.batches import plan_run
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.device import PRECISIONS, autocast, choose_device, generator, make_reproducible
from rlhf.engine import prepare
from rlhf.errors import BadInput
from rlhf.evaluation.judging import Scorer, pair_metrics, probe_metrics
from rlhf.models import context_length, count_parameters, load_policy
from rlhf.monitor import Monitor
from rlhf.normaliser import reference_moments
from rlhf.outputs import read_jsonl, write_metrics
from rlhf.preferences import encode_pairs
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction
from rlhf.reward_batch import losses, with_swaps
from rlhf.reward_model import POOLINGS, RewardModel
from rlhf.schedules import cosine
from rlhf.tokenizer import load_tokenizer, pad_of

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
    swap_weight: float
    """Weight of the replaced-token loss, 0 or more; 0 leaves the preference loss alone and saves its cost."""
    swap_share: float
    """Share of the pairs whose chosen answer is also shown with facts of another prompt, from 0 to 1."""
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
        require_at_least(0, swap_weight=self.swap_weight)
        require_fraction(swap_share=self.swap_share)
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
        probes: folder of minimal pairs, reported by the fact that was flipped.
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
    policy = load_policy(sft, device=choose_device())
    reward_model = RewardModel.from_policy(sft, pooling=config.pooling, scale=config.scale, device=choose_device())
    limit = min(config.max_tokens, context_length(reward_model.trunk) or config.max_tokens)
    train = encode_pairs(tokenizer, records["train"][: config.max_pairs], max_tokens=limit)
    if not train:
        raise BadInput(
            f"{pairs}/train.jsonl: {len(records['train'])} pairs, of which none fits {limit} tokens; name a file that "
            f"has pairs in validate.files, or raise {stage}.max_tokens"
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
    done, recent = 0, dict.fromkeys(("loss", "accuracy", "margin", "swap_loss", "swap_accuracy"), 0.0)
    state = checkpoints.load()
    if state is not None:
        engine.load_state_dict(state["engine"])
        set_rng_state(state["rng"])
        monitor.restore(state["rows"])
        done, recent = state["done"], state["recent"]

    # 3. Train
    every = max(1, len(plan) // CURVE_ROWS)
    since = done % every
    share = config.swap_share if config.swap_weight > 0 else 0.0
    constants: dict[str, Any] = {"centering": config.centering, "pad_id": pad_of(tokenizer)}
    for step, rows in enumerate(plan[done:], start=done + 1):
        with autocast(policy.device, config.precision):
            examples = with_swaps(train, rows, policy, tokenizer, share=share, seed=seed + step)
        judged = distributed.reduce_sum({"tokens": float(sum(example.judged for example in examples))})["tokens"]
        size = config.micro_batch or len(examples)
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            preference, swap = losses(engine, part, **constants, pairs=len(rows), tokens=judged)
            engine.backward(preference.loss + config.swap_weight * swap.loss, final=start + size >= len(examples))
            recent["loss"] += float(preference.loss.detach())
            recent["accuracy"] += float(preference.accuracy) * len(part) / len(rows)
            recent["margin"] += float(preference.margin)
            recent["swap_loss"] += float(swap.loss.detach())
            recent["swap_accuracy"] += float(swap.accuracy)
        update = engine.step()
        since += 1
        if step % every == 0 or step == len(plan):
            means = {name: value / since for name, value in distributed.reduce_sum(recent).items()}
            row = {**means, "epoch": step / per_epoch, **update}
            if records["dev"] and (step % per_epoch < every or step == len(plan)):
                dev = pair_metrics(records["dev"], scorer.score_pairs(records["dev"]))
                row["dev_accuracy"] = dev.get("accuracy", math.nan)
            monitor.log(step, **row)
            recent, since = dict.fromkeys(recent, 0.0), 0
        if distributed.any_rank(checkpoints.due()):
            now = {"engine": engine.state_dict(), "rng": rng_state(), "rows": monitor.rows}
            checkpoints.save(step, {**now, "done": step, "recent": recent})

    # 4. Fix the zero and the unit of the score on answers of the SFT policy
    questions = [row["prompt"] for row in list(read_jsonl(prompts / "train.jsonl")) or records["train"]]
    answers = {"samples": config.normalise_samples, "max_new_tokens": config.max_new_tokens}
    reward_model.mean, reward_model.std = reference_moments(scorer, policy, questions, **answers, draws=generator(seed))

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


def _accuracy(report: dict[str, Any], split: str) -> str:
    value = report.get(split, {}).get("accuracy")
    return "unknown" if value is None else f"{value:.3f}"
