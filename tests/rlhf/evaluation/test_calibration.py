"""Calibration and accuracy by hand."""

import math

import numpy as np
import pytest

from rlhf.evaluation.calibration import expected_calibration_error, pair_accuracy, pair_calibration_error


def test_error_by_hand() -> None:
    # Two bins. [0, 0.5): 0.1 and 0.3, outcomes 0 and 1: |0.5 - 0.2| = 0.3. [0.5, 1]: 0.9 and 1.0, both 1: 0.05.
    found = expected_calibration_error([0.1, 0.3, 0.9, 1.0], [0, 1, 1, 1], bins=2)
    assert found == pytest.approx(0.5 * 0.3 + 0.5 * 0.05)


def test_perfect_and_worst() -> None:
    assert expected_calibration_error([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0)
    assert expected_calibration_error([0.0, 1.0], [1, 0]) == 1


def test_one_bin_is_the_difference_of_means() -> None:
    probabilities = np.random.default_rng(0).random(50)
    outcomes = np.random.default_rng(1).integers(0, 2, 50)
    found = expected_calibration_error(probabilities, outcomes, bins=1)
    assert found == pytest.approx(abs(probabilities.mean() - outcomes.mean()))


def test_pair_error_by_hand() -> None:
    # sigma(ln 3) = 0.75. Three of four agree with the sign: calibrated, although the label is always "first is better".
    ln3 = math.log(3)
    assert pair_calibration_error([ln3, ln3, ln3, -ln3], [1, 1, 1, 1]) == pytest.approx(0)
    # All agree: 0.25 too modest.
    assert pair_calibration_error([ln3, ln3], [1, 1]) == pytest.approx(0.25)
    # A tie agrees by half.
    assert pair_calibration_error([ln3], [0.5]) == pytest.approx(0.25)


def test_pair_error_does_not_depend_on_the_order_of_answers() -> None:
    generator = np.random.default_rng(0)
    margins, labels = generator.normal(size=40), generator.random(40)
    swap = generator.random(40) < 0.5
    swapped = pair_calibration_error(np.where(swap, -margins, margins), np.where(swap, 1 - labels, labels))
    assert swapped == pytest.approx(pair_calibration_error(margins, labels))


def test_a_huge_margin_does_not_overflow() -> None:
    assert pair_calibration_error([1e6, -1e6], [1, 0]) == pytest.approx(0)


def test_accuracy_leaves_ties_out() -> None:
    # Right, wrong, tie (left out), equal scores (half): 1.5 / 3
    assert pair_accuracy([2.0, -1.0, 9.0, 0.0], [1.0, 0.75, 0.5, 1.0]) == 0.5
    assert pair_accuracy([-2.0], [0.1]) == 1
    with pytest.raises(ValueError, match="all 2 pairs are ties"):
        pair_accuracy([1.0, 2.0], [0.5, 0.5])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"outcomes has shape \(1,\) but probabilities has \(2,\)"):
        expected_calibration_error([0.1, 0.2], [1])
    with pytest.raises(ValueError, match="probabilities holds numbers outside"):
        expected_calibration_error([1.2], [1])
    with pytest.raises(ValueError, match="labels holds numbers outside"):
        pair_accuracy([1.2], [math.nan])
    with pytest.raises(ValueError, match="bins is 0"):
        expected_calibration_error([0.2], [1], bins=0)
    with pytest.raises(ValueError, match=r"labels has shape \(2,\) but margins has \(1,\)"):
        pair_calibration_error([1.0], [1, 1])
