import math

import pytest
import torch
from torch import tensor

from rlhf.label_errors import (
    STEEPEST,
    against_truth,
    calibrated_slope,
    cleaned,
    folds_by_prompt,
    right_probabilities,
    suspects,
)


def prompt(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Question {number}"}]


def test_folds_are_of_prompts_and_of_equal_size() -> None:
    prompts = [prompt(number % 10) for number in range(30)]
    folds = folds_by_prompt(prompts, 3, seed=1)
    assert all(len({folds[at] for at in range(number, 30, 10)}) == 1 for number in range(10))
    assert sorted(folds[:10].count(fold) for fold in range(3)) == [3, 3, 4]
    assert folds == folds_by_prompt(prompts, 3, seed=1)
    assert folds != folds_by_prompt(prompts, 3, seed=2)


@pytest.mark.parametrize(("folds", "count"), [(1, 5), (3, 2), (2, 0)])
def test_folds_that_cannot_be(folds: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"folds is {folds}"):
        folds_by_prompt([prompt(number) for number in range(count)], folds, seed=1)


def test_slope_by_hand() -> None:
    # Three margins of 1 and one of -1, all labels certain: the optimum solves 3 (1 - s) = s with s = sigmoid(b), so
    # s = 3/4 and b = log 3.
    assert calibrated_slope(tensor([1.0, 1.0, 1.0, -1.0]), torch.ones(4)) == pytest.approx(math.log(3), abs=1e-9)
    # A soft label of 3/4 at margin 2: sigmoid(2 b) = 3/4, b = log(3) / 2.
    assert calibrated_slope(tensor([2.0]), tensor([0.75])) == pytest.approx(math.log(3) / 2, abs=1e-9)


def test_scores_in_other_units_give_the_same_probabilities() -> None:
    margins = torch.randn(200, generator=torch.Generator().manual_seed(0)) + 0.5
    ones = torch.ones(200)
    slope = calibrated_slope(margins, ones)
    scaled = calibrated_slope(10 * margins, ones)
    torch.testing.assert_close(right_probabilities(10 * margins, scaled), right_probabilities(margins, slope))


def test_models_without_knowledge_or_without_error() -> None:
    assert calibrated_slope(tensor([-1.0, -2.0, 0.5]), torch.ones(3)) == 0.0
    assert calibrated_slope(torch.zeros(3), torch.ones(3)) == 0.0
    assert calibrated_slope(torch.zeros(0), torch.zeros(0)) == 0.0
    sure = calibrated_slope(tensor([2.0, 2.0]), torch.ones(2))
    assert sure <= STEEPEST / 2
    assert right_probabilities(tensor([2.0]), sure).item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("margins", [torch.zeros(2, 2), torch.zeros(3), tensor([1.0, math.nan])])
def test_margins_of_another_shape_are_refused(margins: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="calibrated_slope"):
        calibrated_slope(margins, torch.ones(2))


def test_probabilities_by_hand() -> None:
    # sigmoid(2 * 0.5 log 3) = 3/4; sigmoid(0) = 1/2; far out it is 0 or 1, never NaN.
    found = right_probabilities(tensor([0.5 * math.log(3), 0.0, -1e30, 1e30]), 2.0)
    torch.testing.assert_close(found, tensor([0.75, 0.5, 0.0, 1.0], dtype=torch.float64))


def test_suspects_by_hand() -> None:
    # t = (0.9 + 0.9 + 0.8 + 0.2) / 4 = 0.7; the last label's other side has 0.8 >= 0.7; none else comes near.
    assert suspects(tensor([0.9, 0.9, 0.8, 0.2])).tolist() == [False, False, False, True]
    # t = (0.99 + 0.99 + 0.4 + 0.5) / 4 = 0.72: the model leans against the third label (0.6), but not as surely.
    assert suspects(tensor([0.99, 0.99, 0.4, 0.5])).tolist() == [False] * 4


def test_a_model_that_knows_nothing_flags_nothing() -> None:
    assert not suspects(torch.full((5,), 0.5)).any()


@pytest.mark.parametrize("bad", [torch.zeros(2, 2), tensor([1.2]), tensor([math.nan])])
def test_no_probabilities_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="suspects"):
        suspects(bad)


def test_a_list_against_the_truth_by_hand() -> None:
    # 100 pairs, most suspicious first in the order 99, 98, ...; 80 to 99 are wrong but for two, and 5 is wrong, too.
    wrong: list[bool | None] = [number >= 80 for number in range(100)]
    wrong[99], wrong[98], wrong[5] = None, False, True
    flagged = [number >= 90 for number in range(100)]
    found = against_truth(list(range(99, -1, -1)), flagged, wrong)
    assert found is not None
    assert (found.measured, found.wrong, found.flagged) == (99, 19, 9)
    assert found.base_rate == pytest.approx(19 / 99)
    assert found.precision_at == {"50": 18 / 50}  # of 98..49 the wrong ones are 97..80; 100 is longer than the list
    assert found.precision == pytest.approx(8 / 9)  # 98..90 without 98
    assert found.recall == pytest.approx(8 / 19)


def test_where_nothing_is_known_or_wrong_or_flagged() -> None:
    assert against_truth([0, 1], [True, False], [None, None]) is None
    found = against_truth([0, 1], [False, False], [False, False])
    assert found is not None
    assert (found.precision, found.recall, found.base_rate) == (None, None, 0.0)


def test_what_becomes_of_a_flagged_pair() -> None:
    record = {
        "id": "p1", "prompt": prompt(1), "chosen": "a", "rejected": "b", "label": 0.9, "annotator": "Bo",
        "score_chosen": 2.0, "score_rejected": 1.0, "source": "x", "meta": {"k": 1},
    }  # fmt: skip
    assert cleaned(record, 0.8, "drop", {"folds": 2}) is None
    flipped = cleaned(record, 0.8, "flip", {"folds": 2})
    assert flipped == {
        **record, "chosen": "b", "rejected": "a", "annotator": "denoise", "score_chosen": None, "score_rejected": None,
        "meta": {"k": 1, "denoised": {"folds": 2, "suspicion": 0.8, "annotator": "Bo"}},
    }  # fmt: skip
    assert record["chosen"] == "a"
    with pytest.raises(ValueError, match="wanted drop or flip"):
        cleaned(record, 0.8, "keep", {})
