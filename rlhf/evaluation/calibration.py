"""Whether a reward model's order is right, and whether its confidence can be believed."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def expected_calibration_error(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> float:
    """Mean distance between stated probability and observed frequency, over bins of equal width.

        ECE = sum over bins of (n_bin / n) |mean outcome - mean probability|

    Source: Guo et al. 2017, eq. 3, https://arxiv.org/abs/1706.04599

    Args:
        probabilities: stated P(outcome = 1), in [0, 1]. [n]
        outcomes: what happened, 0 or 1, or a share in between. [n]
        bins: number of bins; a probability on an inner edge belongs to the upper bin.

    Returns:
        The error, in [0, 1].

    Raises:
        ValueError: lengths differ, there is no number, or one lies outside [0, 1].
    """
    stated, happened = _unit_vector("probabilities", probabilities), _unit_vector("outcomes", outcomes)
    if stated.shape != happened.shape:
        raise ValueError(f"outcomes has shape {happened.shape} but probabilities has {stated.shape}")
    if bins < 1:
        raise ValueError(f"bins is {bins} but must be at least 1")
    index = np.minimum((stated * bins).astype(np.int64), bins - 1)
    gap = np.bincount(index, weights=happened - stated, minlength=bins)
    return float(np.abs(gap).sum() / len(stated))


def pair_calibration_error(margins: ArrayLike, labels: ArrayLike, *, bins: int = 10) -> float:
    """Calibration error of a reward model on pairs, which does not depend on which answer is written first.

    A pair's confidence is sigma(|margin|), its outcome is how far the label agrees with the margin's sign. With the
    better answer always first, every outcome would be 1 and the error of a random model would look like a bias.

    Args:
        margins: chosen minus rejected score, reward units. [n]
        labels: P(chosen is better), in [0, 1]. [n]
        bins: number of bins over [0, 1]; confidences fill the upper half.

    Returns:
        The error, in [0, 1].

    Raises:
        ValueError: lengths differ, there is no pair, or a label lies outside [0, 1].
    """
    difference, label = np.asarray(margins, dtype=np.float64), _unit_vector("labels", labels)
    if difference.shape != label.shape:
        raise ValueError(f"labels has shape {label.shape} but margins has {difference.shape}")
    agreement = np.where(difference > 0, label, np.where(difference < 0, 1 - label, 0.5))
    return expected_calibration_error(1 / (1 + np.exp(-np.abs(difference))), agreement, bins=bins)


def pair_accuracy(margins: ArrayLike, labels: ArrayLike) -> float:
    """Share of pairs in the labelled order; pairs labelled as ties (0.5) say nothing and are left out.

    Args:
        margins: chosen minus rejected score, reward units. [n]
        labels: P(chosen is better), in [0, 1]. [n]

    Returns:
        The share, in [0, 1]; a margin of exactly 0 counts half.

    Raises:
        ValueError: lengths differ, a label lies outside [0, 1], or every pair is a tie.
    """
    difference, label = np.asarray(margins, dtype=np.float64), _unit_vector("labels", labels)
    if difference.shape != label.shape:
        raise ValueError(f"labels has shape {label.shape} but margins has {difference.shape}")
    decided = label != 0.5
    if not decided.any():
        raise ValueError(f"all {len(label)} pairs are ties, so there is no accuracy")
    return float((0.5 + 0.5 * np.sign(difference) * np.sign(label - 0.5))[decided].mean())


def _unit_vector(name: str, values: ArrayLike) -> NDArray[np.float64]:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or len(data) == 0:
        raise ValueError(f"{name} has shape {data.shape} but must be one row of at least one number")
    if not ((data >= 0) & (data <= 1)).all():
        raise ValueError(f"{name} holds numbers outside [0, 1]")
    return data
