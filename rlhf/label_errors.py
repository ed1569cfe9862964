"""Which labels are probably wrong, from what models that never saw them think of the pairs.

A pair's two answers stand in no particular order, so "chosen" and "rejected" are two names for one class problem: the
label says that `chosen` is better, and p is the out-of-fold probability that it is right. Confident learning flags a
label when the other class is at least as probable as that class is on average where it was the given label. With two
classes that mirror each other, the two averages are one:

    t = mean_i p_i,        flagged_i  <=>  1 - p_i >= t  and  1 - p_i > 1/2

so a model that is sure of itself only flags what it is sure about, and one that knows little flags only its surest
disagreements. The most suspicious pair is the one with the lowest p (its self-confidence).

Source: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", section 3 (the
thresholds of the confident joint; rank and prune), https://arxiv.org/abs/1911.00068.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf.data.records import Message, canonical_json, digest

STEEPEST = 40.0
"""Largest slope, in logits per root mean square margin: a model that is never wrong has no finite one."""
AT = (50, 100, 200)
"""Lengths of the top of the list at which precision is reported."""


class Truth(NamedTuple):
    """How a list of suspects compares with errors that are known."""

    measured: int
    """Pairs whose right order is known."""
    wrong: int
    """Of them, labelled the wrong way round."""
    base_rate: float
    """wrong / measured: the precision of a list in random order."""
    precision_at: dict[str, float]
    """Share of wrong ones among the most suspicious so many of the measured pairs, by length of the list."""
    flagged: int
    """Measured pairs that were flagged."""
    precision: float | None
    """Share of wrong ones among them; None when nothing was flagged."""
    recall: float | None
    """Share of the wrong ones that were flagged; None when none is wrong."""


def folds_by_prompt(prompts: Sequence[list[Message]], folds: int, *, seed: int) -> list[int]:
    """The fold of each pair: a hash of its prompt, so that all pairs of one prompt are in one fold.

    Args:
        prompts: of each pair.
        folds: at least 2.
        seed: another one, another division.

    Raises:
        ValueError: fewer than 2 folds, or fewer different prompts than folds.
    """
    keys = [canonical_json(prompt) for prompt in prompts]
    different = sorted(set(keys), key=lambda key: digest(key, salt=f"fold {seed}"))
    if folds < 2 or len(different) < folds:
        raise ValueError(f"folds is {folds} with {len(different)} prompts, wanted at least 2 and at most the prompts")
    fold_of = {key: place % folds for place, key in enumerate(different)}
    return [fold_of[key] for key in keys]


def calibrated_slope(margins: Tensor, certainties: Tensor) -> float:
    """The factor on margins that makes them the likeliest logits of the labels (temperature scaling).

        b = argmax_{b >= 0} sum_i [c_i log sigmoid(b m_i) + (1 - c_i) log sigmoid(-b m_i)]

    The objective is concave in b, so its derivative has one sign change, which bisection finds. Wrong labels are part
    of the data that it is fitted to, so p comes out as the probability that this annotator says so.

    Args:
        margins: score of chosen minus score of rejected. [N]
        certainties: probability that chosen is better, as the label says. [N], in [0.5, 1]

    Returns:
        b; 0 for a model that is no better than chance, at most `STEEPEST` over the root mean square of the margins.

    Raises:
        ValueError: not two rows of finite numbers of one length.

    Source: Guo et al. 2017, section 4.2, https://arxiv.org/abs/1706.04599.
    """
    if margins.dim() != 1 or margins.shape != certainties.shape or not bool(torch.isfinite(margins).all()):
        shapes = tuple(margins.shape), tuple(certainties.shape)
        raise ValueError(f"calibrated_slope: margins and certainties have shapes {shapes}, wanted two finite rows [N]")
    exact, weight = margins.double(), certainties.double()
    spread = float(exact.square().mean().sqrt()) if len(exact) else 0.0
    if spread == 0.0:
        return 0.0

    def derivative(slope: float) -> float:
        # d/db of the objective: m (c - sigmoid(b m))
        return float((exact * (weight - torch.sigmoid(slope * exact))).sum())

    low, high = 0.0, STEEPEST / spread
    if derivative(low) <= 0:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if derivative(middle) > 0 else (low, middle)
    return (low + high) / 2


def right_probabilities(margins: Tensor, slope: float) -> Tensor:
    """The probability p that chosen is better, sigmoid(slope * margin), as float64. [N]."""
    return logsigmoid(slope * margins.double()).exp()


def suspects(probabilities: Tensor) -> Tensor:
    """Which labels confident learning flags (see the module).

    Args:
        probabilities: p of each pair, out of fold. [N]

    Returns:
        True where flagged. [N] bool

    Raises:
        ValueError: a value is no probability.
    """
    if probabilities.dim() != 1 or not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise ValueError(f"suspects: shape {tuple(probabilities.shape)}, wanted [N] numbers in [0, 1]")
    other = 1.0 - probabilities
    return (other >= probabilities.mean()) & (other > 0.5)


def against_truth(order: Sequence[int], flagged: Sequence[bool], wrong: Sequence[bool | None]) -> Truth | None:
    """Measure a list of suspects against known errors.

    Args:
        order: pairs from the most to the least suspicious.
        flagged: by pair, whether it was flagged.
        wrong: by pair, whether its label is known to be the wrong way round; None where nobody knows.

    Returns:
        The comparison over the pairs that are known; None where there are none.
    """
    ranked = [place for place in order if wrong[place] is not None]
    if not ranked:
        return None
    errors = sum(bool(wrong[place]) for place in ranked)
    hits = [bool(wrong[place]) for place in ranked if flagged[place]]
    return Truth(
        measured=len(ranked),
        wrong=errors,
        base_rate=errors / len(ranked),
        precision_at={
            str(length): sum(bool(wrong[place]) for place in ranked[:length]) / length
            for length in AT
            if length <= len(ranked)
        },
        flagged=len(hits),
        precision=sum(hits) / len(hits) if hits else None,
        recall=sum(hits) / errors if errors else None,
    )


def cleaned(record: dict[str, Any], suspicion: float, action: str, origin: dict[str, Any]) -> dict[str, Any] | None:
    """What becomes of a flagged pair: nothing ("drop"), or the pair the other way round ("flip").

    A flipped pair says in `meta` that it was flipped and by what; its annotator is no longer the one who said the
    opposite.

    Raises:
        ValueError: another action.
    """
    if action not in ("drop", "flip"):
        raise ValueError(f"action is {action!r}, wanted drop or flip")
    if action == "drop":
        return None
    note = {**origin, "suspicion": suspicion, "annotator": record["annotator"]}
    return {
        **record,
        "chosen": record["rejected"],
        "rejected": record["chosen"],
        "score_chosen": None,
        "score_rejected": None,
        "annotator": "denoise",
        "meta": {**record["meta"], "denoised": note},
    }
