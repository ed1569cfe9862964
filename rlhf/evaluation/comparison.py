"""What the answers of several policies to the same prompts say: win rates, averages, the choice, over-optimisation.

Rows are the answers that `evaluate` writes; see `rlhf.evaluation.answers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.data import rubric
from rlhf.evaluation.statistics import Interval, paired_win_rate
from rlhf.evaluation.text_metrics import end_rate, repetition

Row = Mapping[str, Any]

RUBRIC_SHOWN = (
    "action_ok", "order_ok", "name_ok", "item_ok", "sla_ok", "empathy", "filler", "promise", "rude", "malformed",
)  # fmt: skip
"""Features of the rubric that are reported: shares of right facts, and acts per answer."""


def duel(
    ours: Sequence[Row], theirs: Sequence[Row], measure: str, *, tolerance: float, resamples: int, seed: int
) -> Interval | None:
    """Win rate of one policy over another by one measure, with its 95% interval.

    Args:
        ours: answers of the policy.
        theirs: answers of the other one to the same prompts; matched by id.
        measure: "judge", "gold" or "reward".
        tolerance: scores this close are a tie, in their unit. Equal answers get scores that differ in the last digits,
            by the padding they were batched with; without a tolerance rounding would decide such ties.
        resamples: bootstrap resamples of the prompts.
        seed: seed of the resampling.

    Returns:
        The win rate; None where a prompt has no such score.

    Raises:
        ValueError: the prompts differ.
    """
    other = {row["id"]: row for row in theirs}
    if len(ours) != len(theirs) or any(row["id"] not in other for row in ours):
        raise ValueError(
            f"{len(ours)} answers are compared with {len(theirs)} to other prompts; wanted the same prompts"
        )
    pairs = [(row[measure], other[row["id"]][measure]) for row in sorted(ours, key=lambda row: str(row["id"]))]
    if not pairs or any(a is None or b is None for a, b in pairs):
        return None
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    return paired_win_rate(first, second, tolerance=tolerance, resamples=resamples, seed=seed)


def policy_metrics(
    rows: Sequence[Row], baseline: Sequence[Row] | None, *, tolerance: float, resamples: int, seed: int
) -> dict[str, float]:
    """Averages of one policy's answers and its win rates over the baseline.

    Args:
        rows: the policy's answers on one split.
        baseline: the SFT model's answers to the same prompts; None leaves the win rates out.
        tolerance: as in `duel`.
        resamples: as in `duel`.
        seed: as in `duel`.

    Returns:
        Win rates with intervals by judge and gold, mean judge, reward and gold score, KL, length, share that ended,
        repetition and, where the rubric applies, its shares and counts per answer.

    Raises:
        ValueError: there are no answers, or the prompts differ.
    """
    if not rows:
        raise ValueError("a policy has no answers, wanted at least one")
    metrics: dict[str, float] = {}
    for measure in ("judge", "gold") if baseline is not None else ():
        won = duel(rows, baseline or (), measure, tolerance=tolerance, resamples=resamples, seed=seed)
        if won is not None:
            metrics |= {
                f"{measure}_win_vs_sft": won.mean,
                f"{measure}_win_low": won.low,
                f"{measure}_win_high": won.high,
            }
    for measure in ("judge", "reward", "gold"):
        values = [row[measure] for row in rows if row[measure] is not None]
        if values:
            metrics[measure] = _mean(values)
    metrics["kl"] = _mean([row["kl"] for row in rows])
    metrics["length_tokens"] = _mean([row["tokens"] for row in rows])
    metrics["end_rate"] = end_rate([row["ended"] for row in rows])
    metrics["repetition"] = _mean([repetition(row["response"]) for row in rows])
    return metrics | rubric_metrics(rows)


def by_group(
    rows: Mapping[str, Sequence[Row]], field: str, *, baseline: str, tolerance: float, resamples: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The results of every policy on each group of prompts, such as those whose wording alone is new.

    Args:
        rows: answers by policy, to the same prompts.
        field: the field of `meta` that names a prompt's group; prompts without it are in none.
        baseline: the policy that win rates are taken against.
        tolerance: as in `duel`.
        resamples: as in `duel`.
        seed: as in `duel`.

    Returns:
        `policy_metrics` by group, in alphabetical order, and policy.
    """
    found = rows.get(baseline, ())
    groups = sorted({str(row["meta"][field]) for row in found if field in row["meta"]})
    parts = {
        group: {name: [row for row in own if str(row["meta"].get(field)) == group] for name, own in rows.items()}
        for group in groups
    }
    settings: dict[str, Any] = {"tolerance": tolerance, "resamples": resamples, "seed": seed}
    return {
        group: {
            name: policy_metrics(own, None if name == baseline else part[baseline], **settings)
            for name, own in part.items()
        }
        for group, part in parts.items()
    }


def rubric_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Shares of answers that have each fact right, and mean numbers of each defect, where the rubric applies."""
    graded = [
        rubric.judge(row["meta"], row["response"], ended=row["ended"]).features
        for row in rows
        if rubric.applies(row["meta"])
    ]
    if not graded:
        return {}
    return {name: _mean([features[name] for features in graded]) for name in RUBRIC_SHOWN}


def select(metrics: Mapping[str, Mapping[str, float]], candidates: Sequence[str], *, tolerance: float) -> str:
    """Choose the method: the highest judge win rate on dev; among those within the tolerance, the lowest KL.

    Args:
        metrics: `policy_metrics` of every candidate on the dev split.
        candidates: names to choose among, at least one.
        tolerance: win rates this close count as equal.

    Returns:
        The chosen name; of equals, the first in the order given.

    Raises:
        ValueError: there is no candidate.
    """
    if not candidates:
        raise ValueError("there is no policy to choose from besides the baseline")
    best = max(metrics[name]["judge_win_vs_sft"] for name in candidates)
    close = [name for name in candidates if metrics[name]["judge_win_vs_sft"] >= best - tolerance]
    return min(close, key=lambda name: metrics[name]["kl"])


def over_optimised(policy: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Whether a policy won reward and lost what the reward stands for.

    Args:
        policy: `policy_metrics` of the policy.
        baseline: those of the SFT model.

    Returns:
        1.0 when its mean reward is above the baseline's while its judge or gold win rate lies below one half with
        its whole interval; else 0.0.
    """
    if policy["reward"] <= baseline["reward"]:
        return 0.0
    return float(any(policy.get(f"{measure}_win_high", 1.0) < 0.5 for measure in ("judge", "gold")))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
