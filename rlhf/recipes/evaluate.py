"""Evaluation: every policy answers held-out prompts, and is compared with the SFT model that it came from.

The method is chosen on dev and reported on test. The judge, trained on pairs that no policy and not the reward model
saw, decides; where a prompt carries the facts of the embedded task the rubric is reported beside it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from rlhf import matmul
from rlhf.device import PRECISIONS, choose_device, make_reproducible
from rlhf.errors import BadInput
from rlhf.evaluation.alignment_tax import demonstration_fit, regression, tax
from rlhf.evaluation.answers import Policy, Sampling, answer_rows, divergences, fitting, sample
from rlhf.evaluation.comparison import by_group, duel, over_optimised, policy_metrics, select
from rlhf.evaluation.frontier import sampled_frontier
from rlhf.evaluation.judging import Scorer, trust
from rlhf.evaluation.marks import marks
from rlhf.matmul import LIBRARIES
from rlhf.monitor import Monitor
from rlhf.outputs import read_jsonl, write_csv, write_jsonl, write_metrics
from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction

BASELINE, AGAIN = "sft", "sft_again"
SPLITS = ("dev", "test")
UNLIKE = "unlike"
"""Prompts unlike those of training, where there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Settings of the evaluation."""

    policies: tuple[str, ...]
    """Policies to compare, the baseline `sft` first; a subset of sft, ppo, dpo."""
    temperature: float
    """Temperature at which answers are sampled and KL is measured; above 0."""
    max_new_tokens: int
    """Longest answer, tokens; at least 1."""
    dev_prompts: int
    """Most dev prompts answered by each policy; the method is chosen on them; at least 1."""
    test_prompts: int
    """Most test prompts answered by each policy; all results are reported on them; at least 1."""
    unlike_prompts: int
    """Most prompts unlike the training prompts that each policy answers; 0 for none."""
    held_out_records: int
    """Most test demonstrations, pairs and probes that are read, of each kind; at least 1."""
    best_of: tuple[int, ...]
    """Sizes n of the best-of-n frontier, ascending, each at least 1; may be empty."""
    best_of_prompts: int
    """Test prompts of the best-of-n frontier; each costs the largest n in samples; at least 1."""
    batch: int
    """Answers sampled or scored at once; at least 1."""
    win_tolerance: float
    """Dev win rates this close count as equal, and the lower KL is chosen; in [0, 1]."""
    tie_tolerance: float
    """Scores of two answers this close are a tie, in the score's unit; at least 0."""
    kl_band: tuple[float, ...]
    """Lowest and highest KL to SFT in which a policy is meant to end, nats per response."""
    preference_accuracy_mark: float
    """Accuracy on held-out pairs that a reward model should reach, in [0, 1]."""
    resamples: int
    """Bootstrap resamples of the prompts behind each 95% interval; at least 100."""
    matmul: str
    """What multiplies fp32 matrices on a CPU: "native" or "onednn", see `rlhf.matmul`."""
    precision: str
    """Number format of forward passes: auto, float32 or bfloat16."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.policies[:1] != (BASELINE,) or len(set(self.policies)) != len(self.policies):
            raise ValueError(f"policies is {list(self.policies)}, wanted distinct names with {BASELINE} first")
        require_above_zero(temperature=self.temperature)
        require_at_least(1, max_new_tokens=self.max_new_tokens, batch=self.batch, best_of_prompts=self.best_of_prompts)
        require_at_least(1, dev_prompts=self.dev_prompts, test_prompts=self.test_prompts)
        require_at_least(1, held_out_records=self.held_out_records)
        require_at_least(100, resamples=self.resamples)
        require_at_least(0, tie_tolerance=self.tie_tolerance, unlike_prompts=self.unlike_prompts)
        require_fraction(win_tolerance=self.win_tolerance, preference_accuracy_mark=self.preference_accuracy_mark)
        if len(self.kl_band) != 2 or not 0 <= self.kl_band[0] < self.kl_band[1]:
            raise ValueError(f"kl_band is {list(self.kl_band)}, wanted the lowest and the highest KL, at least 0")
        require_choice(PRECISIONS, precision=self.precision)
        require_choice(LIBRARIES, matmul=self.matmul)
        if list(self.best_of) != sorted(set(self.best_of)) or any(n < 1 for n in self.best_of):
            raise ValueError(f"best_of is {list(self.best_of)}, wanted ascending sizes of at least 1")


def main(
    config: Config, *, seed: int, stage: str, sft: Path, ppo: Path, dpo: Path, reward: Path, judge: Path,
    prompts: Path, pairs: Path, demonstrations: Path, probes: Path, answers: Path, frontier: Path, metrics: Path,
) -> None:  # fmt: skip
    """Evaluate the policies.

    Args:
        config: settings.
        seed: seed of samples and resampling.
        stage: name of the stage.
        sft: folder of the baseline policy.
        ppo: folder of the PPO policy.
        dpo: folder of the DPO policy.
        reward: folder of the reward model that training saw.
        judge: folder of the one that it did not see.
        prompts: folder with dev.jsonl, test.jsonl and perhaps unlike.jsonl of prompt records.
        pairs: folder with test.jsonl of pair records.
        demonstrations: the same of demonstration records.
        probes: the same of minimal pairs, all of them in test.jsonl.
        answers: written: every answer with its scores.
        frontier: written: KL against scores, of the policies and of best-of-n.
        metrics: written: the results.

    Raises:
        BadInput: an unknown policy, a missing file, no held-out prompt, or one that is also among the unlike.
    """
    # 1. Load the baseline and the two scorers, and choose the prompts.
    make_reproducible(seed)
    matmul.choose(config.matmul)
    device = choose_device()
    folders = {"sft": sft, "ppo": ppo, "dpo": dpo}
    if unknown := set(config.policies) - set(folders):
        raise BadInput(f"{stage}.policies names {sorted(unknown)}, wanted some of {', '.join(folders)}")
    sampling = Sampling(
        temperature=config.temperature, max_new_tokens=config.max_new_tokens, batch=config.batch,
        precision=config.precision, seed=seed,
    )  # fmt: skip
    baseline = Policy.load(sft, device=device)
    scorers = {
        name: Scorer.load(folder, device=device, batch=config.batch, precision=config.precision)
        for name, folder in (("reward", reward), ("judge", judge))
    }
    chosen_prompts = {
        split: _prompts(prompts / f"{split}.jsonl", baseline, config, most)
        for split, most in zip(SPLITS, (config.dev_prompts, config.test_prompts), strict=True)
    }
    if unlike := _unlike(prompts, baseline, config):
        chosen_prompts[UNLIKE] = unlike
    written, held_out, minimal = (
        _first(folder / "test.jsonl", config.held_out_records) for folder in (demonstrations, pairs, probes)
    )

    # 2. Let every policy answer, the baseline twice: the second sample shows how far chance alone goes.
    names = [*config.policies[:1], AGAIN, *config.policies[1:]]
    monitor = Monitor(stage, len(names) + 2)
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {split: {} for split in chosen_prompts}
    fit: dict[str, dict[str, float]] = {}
    regressions: dict[str, dict[str, Any]] = {}
    reading: dict[str, Any] = {"batch": config.batch, "precision": config.precision}
    for step, name in enumerate(names, start=1):
        policy = baseline if name in (BASELINE, AGAIN) else Policy.load(folders[name], device=device)
        for scorer in scorers.values():
            _check_tokens(policy, scorer, folders.get(name, sft))
        for split, found in chosen_prompts.items():
            drawn = sample(policy, found, sampling, name=name)
            kl = divergences(policy, baseline, drawn, sampling)
            rows[split][name] = answer_rows(drawn, split=split, policy=name, kl=kl, **scorers)
        if name != AGAIN:
            fit[name] = demonstration_fit(policy, written, **reading)
            regressions[name] = regression(policy, minimal, held_out, **reading)
        shown = {key: _mean([row[key] for row in rows["test"][name]]) for key in ("judge", "reward", "kl", "tokens")}
        monitor.log(step, **shown)

    # 3. Sum up each split, choose on dev, and look for reward that was won without being deserved.
    settings: dict[str, Any] = {"tolerance": config.tie_tolerance, "resamples": config.resamples, "seed": seed}
    candidates = config.policies[1:]
    results = {split: _summary(rows[split], candidates, settings) for split in chosen_prompts}
    for name, values in fit.items():
        if "perplexity" in values:
            results["test"][name]["perplexity"] = values["perplexity"]
    shifts = by_group(rows.get(UNLIKE, {}), "shift", baseline=BASELINE, **settings)
    selected = select(results["dev"], candidates, tolerance=config.win_tolerance) if candidates else BASELINE
    duels = {
        f"{ours}_vs_{theirs}": _duels(rows["test"][ours], rows["test"][theirs], settings)
        for ours, theirs in combinations(candidates, 2)
    }

    # 4. Ask how far the scorers can be trusted: labels, rubric, and pairs in which a single fact is wrong.
    trusted = {name: trust(scorer, name, held_out, minimal, rows["test"][BASELINE]) for name, scorer in scorers.items()}
    monitor.log(len(names) + 1, pairs=len(held_out), probes=len(minimal))

    # 5. Draw the frontier: what choosing the best of n baseline answers buys for its KL.
    few = chosen_prompts["test"][: config.best_of_prompts]
    curve = sampled_frontier(baseline, scorers, few, sampling, config.best_of)
    monitor.log(len(names) + 2, best_of=float(max(config.best_of, default=0)))

    # 6. Write.
    everything = [row for split in rows for name in sorted(rows[split]) for row in rows[split][name]]
    write_jsonl(answers, everything)
    points: list[dict[str, float | int | str]] = [
        {"policy": name, **_point(results["test"][name])} for name in config.policies
    ]
    points += [{"policy": f"best-of-{row['n']:.0f}", **_point(row)} for row in curve]
    write_csv(frontier, points, first=("policy", "kl", "gold", "judge", "reward"))
    write_metrics(
        metrics,
        {
            "selected": selected,
            **results,
            **({"unlike_shifts": shifts} if shifts else {}),
            "duels": duels,
            "reward_model": trusted["reward"],
            "judge": trusted["judge"],
            "tax": tax(fit, regressions, baseline=BASELINE),
            "regression": regressions,
            "marks": marks(
                results["test"],
                candidates,
                baseline=BASELINE,
                accuracy=trusted["reward"].get("accuracy"),
                kl_band=config.kl_band,
                accuracy_mark=config.preference_accuracy_mark,
            ),
            "frontier": {f"best_of_{row['n']:.0f}": _point(row) for row in curve},
            "prompts": {split: len(found) for split, found in chosen_prompts.items()},
        },
    )


def _first(path: Path, most: int) -> list[dict[str, Any]]:
    """The first records of a file by id, so that a cap does not depend on the order of the file."""
    return sorted(read_jsonl(path), key=lambda record: str(record["id"]))[:most]


def _prompts(path: Path, policy: Policy, config: Config, most: int) -> list[Mapping[str, Any]]:
    found = fitting(read_jsonl(path), policy, max_new_tokens=config.max_new_tokens, most=most)
    if not found:
        raise BadInput(
            f"{path}: there is no prompt that leaves {config.max_new_tokens} tokens of the context for an answer; "
            "add prompts, raise the share of this split, or lower evaluate.max_new_tokens"
        )
    return found


def _unlike(folder: Path, policy: Policy, config: Config) -> list[Mapping[str, Any]]:
    """Prompts unlike those of training; none where the file is missing or empty.

    Raises:
        BadInput: one of them is among the dev or test prompts as well.
    """
    path = folder / f"{UNLIKE}.jsonl"
    if not config.unlike_prompts or not path.is_file():
        return []
    records = list(read_jsonl(path))
    asked = {_words(record) for record in records}
    for split in SPLITS:
        if shared := sum(_words(record) in asked for record in read_jsonl(folder / f"{split}.jsonl")):
            raise BadInput(
                f"{path}: {shared} of its prompts are also in {split}.jsonl, so they are not unlike; run validate again"
            )
    return fitting(records, policy, max_new_tokens=config.max_new_tokens, most=config.unlike_prompts)


def _words(record: Mapping[str, Any]) -> str:
    return json.dumps(record["prompt"], sort_keys=True)


def _check_tokens(policy: Policy, scorer: Scorer, folder: Path) -> None:
    if policy.tokenizer.get_vocab() != scorer.tokenizer.get_vocab():
        raise BadInput(f"{folder}: its tokens are not those of the reward models; train them from the same SFT model")


def _summary(
    rows: Mapping[str, list[dict[str, Any]]], candidates: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """Results of every policy on one split."""
    results = {
        name: policy_metrics(found, None if name == BASELINE else rows[BASELINE], **settings)
        for name, found in rows.items()
    }
    for name in candidates:
        results[name]["over_optimised"] = over_optimised(results[name], results[BASELINE])
    return results


def _duels(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, float]:
    results: dict[str, float] = {}
    for measure in ("judge", "gold"):
        won = duel(ours, theirs, measure, **settings)
        if won is not None:
            results |= {f"{measure}_win": won.mean, f"{measure}_win_low": won.low, f"{measure}_win_high": won.high}
    return results


def _point(values: Mapping[str, float]) -> dict[str, float]:
    return {key: values[key] for key in ("kl", "gold", "judge", "reward") if key in values}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else torch.nan
