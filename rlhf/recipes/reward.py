"""Reward model by the Bradley-Terry likelihood of preference pairs; the stage `judge` is the same on other pairs.

The judge sees pairs that the reward model never sees, and starts from another seed, so that a policy which learns to
please the reward model has not learnt to please the judge. Rubric scores, where a record allows them, are only
measured against and never enter a loss.

With `members` above 1 the model is an ensemble: its first member is the model that would have been trained alone and
lies in the folder itself, the others, of other seeds, lie in `member-1`, `member-2` and so on below it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf import distributed, matmul
from rlhf.checkpoint import Checkpoints
from rlhf.device import choose_device, generator, make_reproducible
from rlhf.errors import BadInput
from rlhf.models import context_length, count_parameters, load_policy
from rlhf.monitor import Monitor
from rlhf.normaliser import reference_moments
from rlhf.outputs import folder_writer, read_jsonl, write_metrics
from rlhf.preferences import Pair, Ranking, encode_pairs, encode_rankings
from rlhf.record_file import RecordFile
from rlhf.reward_config import Config
from rlhf.reward_model import RewardModel
from rlhf.reward_report import SPLITS, HeldOut, Scored, ensemble_metrics, held_out_metrics, score_held_out
from rlhf.reward_training import MEASURED, Work, keep_member, kept_member, refuse_wide_ties, train_member
from rlhf.rewards.ensemble import member_folder
from rlhf.row_views import Joined, chosen
from rlhf.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

__all__ = ["Config", "main"]


def main(
    config: Config,
    *,
    seed: int,
    stage: str,
    pairs: Path,
    rankings: Path,
    probes: Path,
    prompts: Path,
    sft: Path,
    model: Path,
    metrics: Path,
    curves: Path,
) -> None:
    """Train a reward model, or an ensemble one after the other, and write it with its metrics and its curve.

    Args:
        config: parameters.
        seed: head weights, order of the pairs and reference answers.
        stage: "reward" or "judge", for checkpoints and live metrics.
        pairs: folder with train.jsonl, dev.jsonl and test.jsonl of pairs.
        rankings: folder of rankings of several answers to a prompt; may be empty or absent.
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
    # 1. Records, policy, token ids
    make_reproducible(seed, deterministic=config.engine.deterministic)
    matmul.choose(config.engine.matmul)
    tokenizer = load_tokenizer(sft)
    policy = load_policy(sft, device=choose_device())
    held_out = HeldOut(
        pairs={split: RecordFile(pairs / f"{split}.jsonl") for split in SPLITS},
        rankings={split: _if_there(rankings / f"{split}.jsonl") for split in SPLITS},
        probes=[row for split in SPLITS for row in read_jsonl(probes / f"{split}.jsonl")],
    )
    orders = held_out.rankings["train"]
    # `validate` may have taken pairs from the rankings, for stages that know pairs only: here they would count twice.
    ranked = {row.get("id") for row in orders} - {None}
    own = chosen(held_out.pairs["train"], lambda row: row["meta"].get("ranking") not in ranked)
    first_pairs = own[: config.max_pairs]
    limit = min(config.max_tokens, context_length(policy) or config.max_tokens)
    train: Sequence[Pair | Ranking] = Joined[Pair | Ranking](
        encode_pairs(tokenizer, first_pairs, max_tokens=limit), encode_rankings(tokenizer, orders, max_tokens=limit)
    )
    if not train:
        raise BadInput(
            f"{pairs}/train.jsonl: {len(held_out.pairs['train'])} pairs, of which none fits {limit} tokens; name a "
            f"file that has pairs in validate.files, or raise {stage}.max_tokens"
        )
    if config.ranking_loss == "plackett_luce":
        refuse_wide_ties(train, f"{rankings}/train.jsonl")
    asked = RecordFile(prompts / "train.jsonl") or Joined(held_out.pairs["train"], orders)
    questions = [row["prompt"] for row in asked[: config.normalise_samples]]

    # 2. What the members share, and where an interrupted run left off
    monitor, checkpoints = Monitor(stage, 0), Checkpoints(stage)
    work = Work(
        config=config, seed=seed, sft=sft, policy=policy, tokenizer=tokenizer, train=train,
        dev=held_out.pairs["dev"], monitor=monitor, checkpoints=checkpoints,
    )  # fmt: skip
    updates = len(work.plan(0)[1])
    monitor.total = updates * config.members
    state = checkpoints.load()
    resumed = state["member"] if state is not None else 0
    if state is not None:
        monitor.restore(state["rows"])

    # 3. One member after the other: train, fix the zero and the unit of the score on answers of the SFT policy, save
    reports, scored = list[dict[str, Any]](), list[Scored]()
    for member in range(config.members):
        folder = member_folder(model, member)
        kept = checkpoints.found(kept_member(checkpoints, member))
        if member < resumed and kept is not None:
            trained = RewardModel.load(kept, device=choose_device())
            _save(trained, folder, work)
            scored.append(score_held_out(work.scorer(trained), held_out))
        else:
            engine, trained = train_member(work, member, state if state and state["member"] == member else None)
            with engine.gathered() as whole:
                whole.mean, whole.std = reference_moments(
                    work.scorer(whole), policy, questions, samples=config.normalise_samples,
                    max_new_tokens=config.max_new_tokens, draws=generator(seed),
                )  # fmt: skip
                scored.append(score_held_out(work.scorer(whole), held_out))
                _save(whole, folder, work)
                if member + 1 < config.members:
                    keep_member(work, whole, member)
        last = next(row for row in monitor.rows if row["step"] == (member + 1) * updates)
        reports.append({
            "parameters": count_parameters(trained),
            "updates": updates,
            "skipped_updates": int(last["skipped"]),
            "train": {**{name: last[name] for name in MEASURED}, "pairs": len(work.plan(member)[0])},
            "normaliser": {"mean": trained.mean, "std": trained.std},
            **held_out_metrics(scored[-1], held_out),
        })  # fmt: skip

    # 4. What is known of the first member, which is the model of the folder, and of the ensemble
    report = reports[0]
    if config.members > 1:
        report["members"] = {str(member): one for member, one in enumerate(reports[1:], start=1)}
        report["ensemble"] = ensemble_metrics(scored, held_out)
    if distributed.is_main():
        monitor.write_curve(curves)
        write_metrics(metrics, report)
    checkpoints.clear()
    log.info("%s: accuracy %s on test, %s on dev", stage, *(_accuracy(report, split) for split in ("test", "dev")))


def _save(trained: RewardModel, folder: Path, work: Work) -> None:
    """Write a member; the first one makes the folder, without members of an earlier run."""
    if distributed.is_main():
        with folder_writer(folder) as temporary:
            trained.save(temporary, work.tokenizer)


def _if_there(file: Path) -> Sequence[dict[str, Any]]:
    """The rows of a file that need not exist: there are pairs without rankings."""
    return RecordFile(file) if file.is_file() else []


def _accuracy(report: dict[str, Any], split: str) -> str:
    value = report.get(split, {}).get("accuracy")
    return "unknown" if value is None else f"{value:.3f}"
