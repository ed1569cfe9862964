"""Supervised fine-tuning: a policy learns to write the responses of demonstrations.

Only response tokens are learnt (the prompt is given); the loss of a batch is the mean over all its response tokens,
however the batch is cut into micro-batches and ranks.
"""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf import distributed, matmul
from rlhf.adapters import Lora, adapter_parameters, add_adapter
from rlhf.batches import plan_run
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.demonstrations import encode, held_out_loss, to_batch
from rlhf.device import PRECISIONS, autocast, choose_device, generator, make_reproducible
from rlhf.engine import prepare
from rlhf.engine_settings import DEFAULTS, EngineSettings
from rlhf.errors import BadInput
from rlhf.export import export_policy
from rlhf.generation import generate
from rlhf.logprobs import response_logprobs
from rlhf.losses.language_model import completion_loss
from rlhf.micro_batches import micro_batches
from rlhf.models import context_length, count_parameters, forbidden_ids
from rlhf.monitor import Monitor
from rlhf.outputs import write_jsonl, write_metrics
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction
from rlhf.record_file import RecordFile
from rlhf.schedules import cosine
from rlhf.starting_point import Size, from_base, from_scratch
from rlhf.tokenizer import decode_response, encode_prompt, pad_of, stop_ids

log = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
CURVE_ROWS = 200
"""Rows of the curve, about."""
EVALUATION_BATCH = 64
MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Parameters of the stage `sft`."""

    base_model: str
    """"scratch", the name of a folder in data/base, or a Hugging Face id together with `revision`."""
    revision: str | None
    """Commit or tag of a Hugging Face id; null for "scratch" and for a local folder."""
    vocab_size: int
    """Largest vocabulary that the tokenizer may learn, tokens; scratch only, at least 261."""
    hidden: int
    """Width of the model; scratch only, a multiple of 2 * heads."""
    layers: int
    """Number of blocks; scratch only."""
    heads: int
    """Attention heads; scratch only."""
    intermediate: int
    """Width of the feed-forward layers; scratch only."""
    context: int
    """Longest sequence that the model has positions for, tokens; scratch only."""
    learning_rate: float
    """Peak rate of AdamW, above 0."""
    batch_size: int
    """Demonstrations per update, over all ranks."""
    micro_batch: int | None
    """Demonstrations per forward pass on one rank; null means the whole share of the rank. Does not change results."""
    epochs: float
    """Passes over the demonstrations, above 0; may be a fraction."""
    warmup_fraction: float
    """Share of the updates in which the rate rises, in [0, 1)."""
    final_lr_fraction: float
    """Share of the peak rate that is left at the end of the cosine, in [0, 1]."""
    max_tokens: int
    """Longest prompt + response in training, tokens; longer responses are cut, longer prompts dropped."""
    max_grad_norm: float
    """Gradients are scaled down to this norm; 0 means never."""
    precision: str
    """"auto" (bfloat16 on a GPU, float32 on a CPU), "float32" or "bfloat16"."""
    lora_rank: int
    """Width of a LoRA adapter, which is then all that is trained and is merged at the end; 0 trains all weights."""
    lora_alpha: float
    """Strength of the adapter: its product is multiplied by lora_alpha / lora_rank, above 0."""
    samples: int
    """Held-out prompts that are answered at the end for people to read."""
    max_new_tokens: int
    """Longest answer among these samples, tokens."""
    engine: EngineSettings = DEFAULTS
    """How it is trained on the devices there are: ZeRO, offload, checkpointing and the like."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: a field is out of range.
        """
        require_above_zero(learning_rate=self.learning_rate, epochs=self.epochs)
        require_at_least(1, batch_size=self.batch_size, micro_batch=self.micro_batch, max_tokens=self.max_tokens)
        require_at_least(1, layers=self.layers, heads=self.heads, intermediate=self.intermediate, context=self.context)
        require_at_least(1, hidden=self.hidden, max_new_tokens=self.max_new_tokens)
        require_at_least(0, samples=self.samples, max_grad_norm=self.max_grad_norm, lora_rank=self.lora_rank)
        require_above_zero(lora_alpha=self.lora_alpha)
        require_fraction(warmup_fraction=self.warmup_fraction, final_lr_fraction=self.final_lr_fraction)
        require_choice(PRECISIONS, precision=self.precision)
        if not MODEL_NAME.fullmatch(self.base_model):
            raise ValueError(
                f"base_model is {self.base_model!r}, wanted scratch, the name of a folder in data/base, or owner/name"
            )
        if self.lora_rank and self.base_model == "scratch":
            raise ValueError("lora_rank is above 0 but base_model is scratch, wanted a trained model to adapt, or 0")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden is {self.hidden}, wanted a multiple of 2 * heads = {2 * self.heads}")


def main(
    config: Config,
    *,
    seed: int,
    stage: str,
    demonstrations: Path,
    base: Path,
    model: Path,
    metrics: Path,
    curves: Path,
    samples: Path,
) -> None:
    """Train a policy on demonstrations and write it with its metrics, its curve and a few answers.

    Args:
        config: parameters.
        seed: initial weights, order of the data and sampled answers.
        stage: name of the stage, for checkpoints and live metrics.
        demonstrations: folder with train.jsonl, dev.jsonl and test.jsonl.
        base: folder of local base models.
        model: folder to write the policy to.
        metrics: JSON file to write.
        curves: CSV file to write.
        samples: JSON lines file to write.

    Raises:
        BadInput: nothing to train on, or a base model that cannot be used.
        StageFailed: training diverged.
    """
    # 1. Records, tokenizer, model, token ids
    make_reproducible(seed, deterministic=config.engine.deterministic)
    matmul.choose(config.engine.matmul)
    records = {split: RecordFile(demonstrations / f"{split}.jsonl") for split in SPLITS}
    if not records["train"]:
        raise BadInput(f"{demonstrations}/train.jsonl: no demonstrations; name a file that has some in validate.files")
    if config.base_model == "scratch":
        shape = Size(*(getattr(config, name) for name in Size._fields))
        tokenizer, policy = from_scratch(records["train"], shape)
    else:
        tokenizer, policy = from_base(config.base_model, revision=config.revision, base=base, device=choose_device())
    if config.lora_rank:
        add_adapter(policy, Lora(config.lora_rank, config.lora_alpha), seed=seed)
    forbidden = forbidden_ids(tokenizer, policy).to(choose_device())
    limit = min(config.max_tokens, context_length(policy) or config.max_tokens)
    data = {split: encode(tokenizer, rows, max_tokens=limit) for split, rows in records.items()}
    train = data["train"].examples
    if not train:
        raise BadInput(f"{demonstrations}/train.jsonl: no demonstration fits {limit} tokens; raise sft.max_tokens")

    # 2. The order of the whole run, the engine, and where an interrupted run left off
    lengths = [len(example.prompt) + len(example.response) for example in train]
    plan, per_epoch = plan_run(lengths, config.batch_size, epochs=config.epochs, generator=generator(seed))
    schedule = cosine(len(plan), warmup_fraction=config.warmup_fraction, final_fraction=config.final_lr_fraction)
    engine = prepare(
        policy,
        learning_rate=config.learning_rate,
        schedule=schedule,
        max_grad_norm=config.max_grad_norm,
        precision=config.precision,
        settings=config.engine,
    )
    monitor, checkpoints = Monitor(stage, len(plan)), Checkpoints(stage)
    done, recent = 0, [0.0, 0.0]
    state = checkpoints.load()
    if state is not None:
        engine.load_state_dict(state["engine"])
        set_rng_state(state["rng"])
        monitor.restore(state["rows"])
        done, recent = state["done"], state["recent"]

    # 3. Train
    every = max(1, len(plan) // CURVE_ROWS)
    measure: dict[str, Any] = {"rows": config.micro_batch or EVALUATION_BATCH, "precision": config.precision}
    for step, rows in enumerate(plan[done:], start=done + 1):
        total_tokens = sum(len(train[row].response) for row in rows)
        for part in micro_batches(rows, config.micro_batch):
            batch = to_batch([train[row] for row in part.rows], tokenizer).to(engine.device)
            with autocast(engine.device, config.precision):
                logprobs = response_logprobs(engine.module, batch, temperature=1.0, forbidden=forbidden).logprobs
            loss = part.weight * completion_loss(logprobs, batch.response_mask, total_tokens=total_tokens)
            engine.backward(loss, final=part.final)
            recent[0] += float(loss.detach())
        update = engine.step()
        recent[1] += 1
        if step % every == 0 or step == len(plan):
            train_loss = distributed.reduce_sum({"loss": recent[0] / recent[1]})["loss"]
            row = {"loss": train_loss, "epoch": step / per_epoch, **update}
            if data["dev"].examples and (step % per_epoch < every or step == len(plan)):
                with engine.gathered() as whole:
                    row["dev_loss"] = held_out_loss(whole, data["dev"].examples, tokenizer, forbidden, **measure)
            monitor.log(step, **row)
            recent = [0.0, 0.0]
        if distributed.any_rank(checkpoints.due()):
            now = {"engine": engine.state_dict(), "rng": rng_state(), "rows": monitor.rows}
            checkpoints.save(step, {**now, "done": step, "recent": recent})

    # 4. Measure, sample, save
    report: dict[str, Any] = {
        "parameters": count_parameters(policy) - adapter_parameters(policy),
        "vocabulary": len(tokenizer),
        "updates": len(plan),
        "skipped_updates": engine.skipped,
        "train": {"loss": monitor.rows[-1]["loss"], **data["train"].counts},
    }
    for split in ("dev", "test"):
        if data[split].examples:
            with engine.gathered() as whole:
                loss_value = held_out_loss(whole, data[split].examples, tokenizer, forbidden, **measure)
            report[split] = {"loss": loss_value, "perplexity": math.exp(loss_value), **data[split].counts}
    with engine.gathered() as whole:
        if distributed.is_main():
            prompts = (record["prompt"] for record in records["dev"])
            with autocast(engine.device, config.precision):
                answers = answer(whole, tokenizer, prompts, forbidden, config, seed)
            write_jsonl(samples, [{"step": len(plan), **row} for row in answers])
            export_policy(whole, tokenizer, model)
            monitor.write_curve(curves)
            write_metrics(metrics, report)
    checkpoints.clear()
    log.info("%s: train loss %.4f, %d parameters", stage, report["train"]["loss"], report["parameters"])


def answer(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Sequence[dict[str, str]]],
    forbidden: Tensor,
    config: Config,
    seed: int,
) -> list[dict[str, Any]]:
    """Temperature-1 answers to the first prompts that leave room for one."""
    room = (context_length(policy) or 2**31) - config.max_new_tokens
    encoded = ((prompt, ids) for prompt in prompts if len(ids := encode_prompt(tokenizer, prompt)) <= room)
    chosen = list(islice(encoded, config.samples))
    if not chosen:
        return []
    stops = stop_ids(tokenizer, policy)
    result = generate(
        policy,
        [ids for _, ids in chosen],
        max_new_tokens=config.max_new_tokens,
        temperature=1.0,
        stop_ids=stops,
        forbidden=forbidden,
        pad_id=pad_of(tokenizer),
        generator=generator(seed),
    )
    return [
        {"prompt": prompt, "response": decode_response(tokenizer, ids, stops=stops)}
        for (prompt, _), ids in zip(chosen, result.responses, strict=True)
    ]
