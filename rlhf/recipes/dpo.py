"""Direct preference optimisation: a policy learns from pairs alone, without reward model, value model or sampling.

The reference is the policy as it was at the start. What it says about the pairs is computed once, before the first
step, and kept; only one model is ever in memory.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import distributed
from rlhf.batches import plan_run, sorted_batches
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.device import PRECISIONS, autocast, choose_device, generator, make_reproducible
from rlhf.engine import prepare
from rlhf.errors import BadInput
from rlhf.losses.dpo import dpo_loss
from rlhf.models import context_length, forbidden_ids, load_policy, save_policy
from rlhf.monitor import Monitor
from rlhf.outputs import read_jsonl, write_jsonl, write_metrics
from rlhf.pair_logprobs import all_pair_logprobs, pair_logprobs
from rlhf.preferences import Pair, encode_pairs
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction
from rlhf.schedules import cosine
from rlhf.showcase import read_questions, show
from rlhf.tokenizer import load_tokenizer, pad_of

CURVE_ROWS = 200
"""Rows of the curve, about; each is a mean over the steps since the last one."""
DEV_ROWS = 4
"""Times that the held-out pairs are measured, besides before the first step."""
UNLIMITED = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Parameters of the stage `dpo`."""

    beta: float
    """Implicit reward per nat of change, above 0; larger stays closer to the reference."""
    label_smoothing: float
    """Share of the labels that are thought wrong, in [0, 0.5)."""
    learning_rate: float
    """Peak rate of AdamW, above 0."""
    batch_size: int
    """Pairs per update, over all ranks."""
    micro_batch: int | None
    """Pairs per forward pass on one rank; null means the whole share of the rank. Does not change results."""
    epochs: float
    """Passes over the pairs, above 0; may be a fraction."""
    warmup_fraction: float
    """Share of the updates in which the rate rises, in [0, 1)."""
    final_lr_fraction: float
    """Share of the peak rate that is left at the end of the cosine, in [0, 1]."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 means never."""
    max_tokens: int
    """Longest prompt + response, tokens; a pair with a longer side is dropped: nobody has judged half an answer."""
    max_pairs: int | None
    """Only the first so many pairs are used; null for all."""
    max_new_tokens: int
    """Longest sampled answer, tokens."""
    sample_every: int
    """Updates between samples for people to read, at least 1."""
    precision: str
    """"auto" (bfloat16 on a GPU, float32 on a CPU), "float32" or "bfloat16"."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a field is out of range.
        """
        require_above_zero(beta=self.beta, learning_rate=self.learning_rate, epochs=self.epochs)
        require_at_least(
            1, batch_size=self.batch_size, micro_batch=self.micro_batch, max_tokens=self.max_tokens,
            max_pairs=self.max_pairs, max_new_tokens=self.max_new_tokens, sample_every=self.sample_every,
        )  # fmt: skip
        require_at_least(0, max_grad_norm=self.max_grad_norm, label_smoothing=self.label_smoothing)
        require_fraction(warmup_fraction=self.warmup_fraction, final_lr_fraction=self.final_lr_fraction)
        require_choice(PRECISIONS, precision=self.precision)
        if not self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, wanted less than 0.5")
        if not self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction is {self.warmup_fraction}, wanted less than 1")


class Tokens(NamedTuple):
    """What every forward pass needs to know about the vocabulary."""

    forbidden: Tensor
    """True at tokens that are never sampled. [V] bool"""
    pad_id: int


class Pairs(NamedTuple):
    """Pairs of one split that can be learnt from, and why others cannot."""

    usable: list[Pair]
    counts: dict[str, int]


def main(
    config: Config, *, seed: int, stage: str, pairs: Path, prompts: Path, sft: Path,
    model: Path, metrics: Path, curves: Path, samples: Path,
) -> None:  # fmt: skip
    """Train a policy by DPO.

    Args:
        config: settings.
        seed: seed of the order of the pairs and of the sampled answers.
        stage: name of the stage.
        pairs: folder with train.jsonl, dev.jsonl and test.jsonl of pair records.
        prompts: folder with dev.jsonl of prompt records, a few of which are answered for people to read.
        sft: folder of the policy to start from.
        model: written: the policy.
        metrics: written: results on train, dev and test pairs.
        curves: written: numbers of the training steps.
        samples: written: answers to the same held-out prompts every `sample_every` updates.

    Raises:
        BadInput: no usable policy or no pair to learn from.
        StageFailed: training diverged.
    """
    # 1. The policy, the pairs, and a few held-out prompts.
    make_reproducible(seed)
    device = choose_device()
    tokenizer, policy = load_tokenizer(sft), load_policy(sft, device=device)
    limit = min(config.max_tokens, context_length(policy) or UNLIMITED)
    data = {split: read_pairs(pairs / f"{split}.jsonl", tokenizer, config, limit) for split in ("train", "dev", "test")}
    train = data["train"].usable
    if not train:
        raise BadInput(
            f"{pairs}/train.jsonl: nothing to learn from {data['train'].counts}; add pairs or raise {stage}.max_tokens"
        )
    room = (context_length(policy) or UNLIMITED) - config.max_new_tokens
    questions, _ = read_questions(prompts / "dev.jsonl", tokenizer, max_tokens=room)

    # 2. The order of the whole run and the engine.
    lengths = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in train]
    plan, per_epoch = plan_run(lengths, config.batch_size, epochs=config.epochs, generator=generator(seed))
    schedule = cosine(len(plan), warmup_fraction=config.warmup_fraction, final_fraction=config.final_lr_fraction)
    engine = prepare(
        policy, learning_rate=config.learning_rate, schedule=schedule, max_grad_norm=config.max_grad_norm,
        precision=config.precision,
    )  # fmt: skip
    monitor, checkpoints = Monitor(stage, len(plan)), Checkpoints(stage)
    tokens = Tokens(forbidden_ids(tokenizer, policy), pad_of(tokenizer))

    # 3. What the reference says about all pairs; an interrupted attempt has left it beside its state.
    done, shown, recent, since = 0, list[dict[str, Any]](), dict[str, float](), 0
    if state := checkpoints.load():
        engine.load_state_dict(state["engine"])
        monitor.restore(state["rows"])
        set_rng_state(state["random"])
        done, shown, recent, since = (state[name] for name in ("done", "shown", "recent", "since"))
        reference = state["reference"]
    else:
        reference = {
            split: all_pair_logprobs(
                policy, group.usable, tokens.forbidden, pad_id=tokens.pad_id, rows=config.batch_size,
                precision=config.precision,
            ) for split, group in data.items()
        }  # fmt: skip

    # 4. Train.
    every, check = max(1, len(plan) // CURVE_ROWS), max(1, len(plan) // DEV_ROWS)
    for step, rows in enumerate(plan[done:], start=done + 1):
        mine = distributed.share(rows)
        size = config.micro_batch or len(mine)
        for start in range(0, len(mine), size):
            index = mine[start : start + size]
            with autocast(device, config.precision):
                part = [train[row] for row in index]
                loss, numbers = compare(engine.module, part, reference["train"][index], tokens, config, total=len(rows))
            engine.backward(loss, final=start + size >= len(mine))
            recent = {name: recent.get(name, 0.0) + value for name, value in numbers.items()}
        update = engine.step()
        since += 1
        last = step == len(plan)
        if step % every == 0 or step % check == 0 or last:
            row = {name: value / since for name, value in distributed.reduce_sum(recent).items()}
            if data["dev"].usable and (step % check == 0 or last):
                dev = held_out(engine.module, data["dev"].usable, reference["dev"], tokens, config)
                row |= {f"dev_{name}": value for name, value in dev.items()}
            monitor.log(step, **row, epoch=step / per_epoch, **update)
            recent, since = {}, 0
        if step % config.sample_every == 0 or last:
            with engine.gathered() as whole, autocast(device, config.precision):
                shown += show(
                    whole, tokenizer, questions, step=step, max_new_tokens=config.max_new_tokens, temperature=1.0,
                    seed=seed,
                )  # fmt: skip
        if distributed.any_rank(checkpoints.due()):
            state = {"engine": engine.state_dict(), "rows": monitor.rows, "random": rng_state(), "done": step}
            state |= {"shown": shown, "recent": recent, "since": since, "reference": reference}
            checkpoints.save(step, state)

    # 5. Measure, save.
    report: dict[str, Any] = {"updates": len(plan), "skipped_updates": engine.skipped}
    for split, group in data.items():
        report[split] = dict(group.counts)
        if group.usable and split != "train":
            report[split] |= held_out(engine.module, group.usable, reference[split], tokens, config)
    report["train"] |= {name: monitor.rows[-1][name] for name in ("loss", "accuracy", "margin")}
    with engine.gathered() as whole:
        if distributed.is_main():
            save_policy(whole, tokenizer, model)
            write_jsonl(samples, shown)
            monitor.write_curve(curves)
            write_metrics(metrics, report)
    checkpoints.clear()


def read_pairs(file: Path, tokenizer: PreTrainedTokenizerBase, config: Config, limit: int) -> Pairs:
    """Pairs that fit and that express a preference; a tie says nothing about which side to make likelier.

    Args:
        file: JSON lines of pair records.
        tokenizer: the policy's.
        config: settings.
        limit: longest prompt + response, tokens.
    """
    records = list(read_jsonl(file))[: config.max_pairs]
    encoded = encode_pairs(tokenizer, records, max_tokens=UNLIMITED)
    fitting = [pair for pair in encoded if len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= limit]
    usable = [pair for pair in fitting if pair.label != 0.5]
    counts = {"pairs": len(usable), "ties": len(fitting) - len(usable), "too_long": len(encoded) - len(fitting)}
    return Pairs(usable, counts)


def compare(
    policy: PreTrainedModel, part: Sequence[Pair], reference: Tensor, tokens: Tokens, config: Config, *, total: int
) -> tuple[Tensor, dict[str, float]]:
    """The loss of some pairs of a batch and what is recorded of them.

    Args:
        policy: being trained; gradient flows.
        part: B pairs.
        reference: log-probabilities of both sides at the start, nats. [B, 2]
        tokens: forbidden ids and PAD.
        config: settings.
        total: pairs of the whole batch.

    Returns:
        The loss, and numbers that add up to the means over the batch.
    """
    chosen, rejected = pair_logprobs(policy, part, tokens.forbidden, pad_id=tokens.pad_id)
    label = torch.tensor([pair.label for pair in part], device=chosen.device)
    ref_chosen, ref_rejected = reference.to(chosen.device).unbind(dim=1)
    result = dpo_loss(
        chosen, rejected, ref_chosen, ref_rejected, label,
        beta=config.beta, label_smoothing=config.label_smoothing, total_pairs=total,
    )  # fmt: skip
    return result.loss, {
        "loss": float(result.loss.detach()),
        "accuracy": float(result.accuracy) * len(part) / total,
        "margin": float(result.margin),
        "chosen_reward": float(result.chosen_reward),
        "rejected_reward": float(result.rejected_reward),
        "chosen_logprob": float(chosen.detach().sum()) / total,
        "rejected_logprob": float(rejected.detach().sum()) / total,
    }


@torch.no_grad()
def held_out(
    policy: PreTrainedModel, pairs: Sequence[Pair], reference: Tensor, tokens: Tokens, config: Config
) -> dict[str, float]:
    """The numbers of `compare` on pairs that are not trained on; all ranks compute all of them."""
    sums: dict[str, float] = defaultdict(float)
    for index in sorted_batches([len(pair.prompt) + len(pair.chosen) for pair in pairs], config.batch_size):
        with autocast(policy.device, config.precision):
            part = [pairs[row] for row in index]
            _, numbers = compare(policy, part, reference[index], tokens, config, total=len(pairs))
        for name, value in numbers.items():
            sums[name] += value
    return dict(sums)
