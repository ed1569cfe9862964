"""Preference objectives without sampling: a policy learns from pairs (DPO, cDPO, IPO) or single judgements (KTO) alone.

The reference is the policy as it was at the start. What it says about the answers is computed once, before the first
step, and kept; only one model is ever in memory.
"""

from pathlib import Path
from typing import Any

from rlhf import distributed, matmul
from rlhf.adapters import Lora, add_adapter
from rlhf.batches import plan_run
from rlhf.checkpoint import Checkpoints, rng_state, set_rng_state
from rlhf.device import autocast, choose_device, generator, make_reproducible
from rlhf.dpo_config import Config
from rlhf.engine import prepare
from rlhf.errors import BadInput
from rlhf.export import export_policy
from rlhf.logprob_cache import LogprobCache
from rlhf.micro_batches import micro_batches
from rlhf.models import context_length, forbidden_ids, load_policy
from rlhf.monitor import Monitor
from rlhf.outputs import write_jsonl, write_metrics
from rlhf.pair_objective import UNLIMITED, Tokens
from rlhf.preference_objectives import OBJECTIVES, held_out
from rlhf.schedules import cosine
from rlhf.showcase import read_questions, show
from rlhf.tokenizer import load_tokenizer, pad_of

__all__ = ["Config", "main"]

CURVE_ROWS = 200
"""Rows of the curve, about; each is a mean over the steps since the last one."""
DEV_ROWS = 4
"""Times that the held-out examples are measured, besides before the first step."""


def main(
    config: Config, *, seed: int, stage: str, pairs: Path, judgements: Path, prompts: Path, sft: Path,
    model: Path, metrics: Path, curves: Path, samples: Path,
) -> None:  # fmt: skip
    """Train a policy by a preference objective.

    Args:
        config: settings.
        seed: seed of the order of the examples, of an adapter and of the sampled answers.
        stage: name of the stage.
        pairs: folder with train.jsonl, dev.jsonl and test.jsonl of pair records.
        judgements: folder with the same files of judgement records, read by KTO only; they may be empty.
        prompts: folder with dev.jsonl of prompt records, a few of which are answered for people to read.
        sft: folder of the policy to start from.
        model: written: the policy.
        metrics: written: results on train, dev and test examples.
        curves: written: numbers of the training steps.
        samples: written: answers to the same held-out prompts every `sample_every` updates.

    Raises:
        BadInput: no usable policy or nothing to learn from.
        StageFailed: training diverged.
    """
    # 1. The policy, what it learns from, and a few held-out prompts.
    make_reproducible(seed, deterministic=config.engine.deterministic)
    matmul.choose(config.engine.matmul)
    device = choose_device()
    tokenizer, policy = load_tokenizer(sft), load_policy(sft, device=device)
    limit = min(config.max_tokens, context_length(policy) or UNLIMITED)
    tokens = Tokens(forbidden_ids(tokenizer, policy), pad_of(tokenizer))
    objective = OBJECTIVES[config.objective](
        config, tokenizer, tokens, pairs=pairs, judgements=judgements, max_tokens=limit
    )
    if reason := objective.refusal():
        raise BadInput(reason)
    room = (context_length(policy) or UNLIMITED) - config.max_new_tokens
    questions, _ = read_questions(prompts / "dev.jsonl", tokenizer, max_tokens=room)

    # 2. The order of the whole run.
    plan, per_epoch = plan_run(
        objective.lengths("train"), config.batch_size, epochs=config.epochs, generator=generator(seed)
    )
    schedule = cosine(len(plan), warmup_fraction=config.warmup_fraction, final_fraction=config.final_lr_fraction)
    monitor, checkpoints = Monitor(stage, len(plan)), Checkpoints(stage)

    # 3. What the reference says about all examples, before anything changes the policy; an interrupted attempt has left
    #    it beside its state.
    state = checkpoints.load()
    if state:
        objective.reference = state["reference"]
    else:
        cache = LogprobCache(sft, tokens.forbidden, rows=config.batch_size, precision=config.precision)
        objective.ask_reference(policy, plan, cache)
    if config.lora_rank:
        policy = add_adapter(policy, Lora(config.lora_rank, config.lora_alpha), seed=seed)
    engine = prepare(
        policy, learning_rate=config.learning_rate, schedule=schedule, max_grad_norm=config.max_grad_norm,
        precision=config.precision, settings=config.engine,
    )  # fmt: skip
    done, shown, recent, since = 0, list[dict[str, Any]](), dict[str, float](), 0
    if state:
        engine.load_state_dict(state["engine"])
        monitor.restore(state["rows"])
        set_rng_state(state["random"])
        done, shown, recent, since = (state[name] for name in ("done", "shown", "recent", "since"))

    # 4. Train.
    every, check = max(1, len(plan) // CURVE_ROWS), max(1, len(plan) // DEV_ROWS)
    for step, rows in enumerate(plan[done:], start=done + 1):
        anchor = objective.anchor(engine.module, "train", rows, step - 1)
        for part in micro_batches(rows, config.micro_batch):
            with autocast(device, config.precision):
                loss, numbers = objective.compare(engine.module, "train", part.rows, anchor, total=len(rows))
            engine.backward(part.weight * loss, final=part.final)
            recent = {name: recent.get(name, 0.0) + part.weight * value for name, value in numbers.items()}
        update = engine.step()
        since += 1
        last = step == len(plan)
        if step % every == 0 or step % check == 0 or last:
            row = objective.means(distributed.reduce_sum(recent), since)
            if step % check == 0 or last:
                with engine.gathered() as whole:
                    row |= {f"dev_{name}": value for name, value in held_out(objective, whole, "dev").items()}
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
            state |= {"shown": shown, "recent": recent, "since": since, "reference": objective.reference}
            checkpoints.save(step, state)

    # 5. Measure, save.
    report: dict[str, Any] = {"updates": len(plan), "skipped_updates": engine.skipped}
    for split, examples in objective.data.items():
        report[split] = dict(examples.counts)
        if split != "train":
            with engine.gathered() as whole:
                report[split] |= held_out(objective, whole, split)
    final = monitor.rows[-1]
    report["train"] |= {name: final[name] for name in ("loss", "accuracy", "margin") if name in final}
    with engine.gathered() as whole:
        if distributed.is_main():
            export_policy(whole, tokenizer, model)
            write_jsonl(samples, shown)
            monitor.write_curve(curves)
            write_metrics(metrics, report)
    checkpoints.clear()
