import math

import pytest
import torch

from rlhf.curriculum import curriculum_order, difficulty


def test_difficulty_by_hand() -> None:
    found = difficulty(torch.tensor([[1.0, 3.0], [-2.0, -2.0], [0.0, 6.0]]))
    # Means 2, -2, 3; deviations from them +-1, 0, +-3, so population standard deviations 1, 0, 3.
    assert found.hardness.tolist() == [-2.0, 2.0, -3.0]
    assert found.spread.tolist() == [1.0, 0.0, 3.0]


def test_one_answer_has_no_spread_and_its_score_is_the_mean() -> None:
    found = difficulty(torch.tensor([[0.25], [-1.5]]))
    assert found.hardness.tolist() == [-0.25, 1.5]
    assert found.spread.tolist() == [0.0, 0.0]


def test_the_order_of_answers_does_not_matter() -> None:
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixed = difficulty(scores[:, [2, 0, 3, 1]])
    torch.testing.assert_close(mixed.hardness, difficulty(scores).hardness)
    torch.testing.assert_close(mixed.spread, difficulty(scores).spread)


def test_a_band_for_each_prompt_is_the_sorted_order() -> None:
    hardness = torch.tensor([0.5, -1.0, 2.0, 0.0])
    assert curriculum_order(hardness, length=4, seed=1, bands=4) == [1, 3, 0, 2]


def test_bands_are_easy_first_and_every_prompt_is_asked_once() -> None:
    hardness = torch.arange(40.0).flip(0)  # prompt 39 is the easiest
    order = curriculum_order(hardness, length=40, seed=3, bands=4)
    assert sorted(order) == list(range(40))
    for band in range(4):
        assert set(order[10 * band : 10 * band + 10]) == set(range(30 - 10 * band, 40 - 10 * band))
    assert order[:10] != sorted(order[:10], reverse=True)  # shuffled inside


def test_sizes_that_bands_do_not_divide_still_ask_each_prompt_once() -> None:
    assert sorted(curriculum_order(torch.randn(11), length=11, seed=0, bands=4)) == list(range(11))


@pytest.mark.parametrize("length", [0, 3, 7, 25])
def test_a_run_of_any_length_goes_through_all_bands(length: int) -> None:
    order = curriculum_order(torch.arange(8.0), length=length, seed=5, bands=2)
    assert len(order) == length
    half = length // 2
    assert set(order[:half]) <= {0, 1, 2, 3}
    assert set(order[half:]) <= {4, 5, 6, 7}
    if length == 25:
        counts = [order[:12].count(prompt) for prompt in range(4)]  # 12 places, 4 prompts: three laps
        assert counts == [3, 3, 3, 3]


def test_a_seed_fixes_the_order() -> None:
    hardness = torch.randn(50, generator=torch.Generator().manual_seed(0))
    orders = [curriculum_order(hardness, length=80, seed=seed) for seed in (1, 1, 2)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_each_lap_has_an_order_of_its_own() -> None:
    order = curriculum_order(torch.zeros(20), length=40, seed=1, bands=1)
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(20))
    assert order[:20] != order[20:]


def test_many_equal_prompts_are_cut_in_their_order() -> None:
    hardness = torch.tensor([1.0, 0.0] * 500)  # unstable sorts mix equal keys from some dozens on
    first = curriculum_order(hardness, length=1000, seed=1, bands=4)[:250]
    assert set(first) == set(range(1, 500, 2))


def test_equal_prompts_keep_their_place_among_bands() -> None:
    order = curriculum_order(torch.zeros(6), length=6, seed=9, bands=3)
    assert [set(order[place : place + 2]) for place in (0, 2, 4)] == [{0, 1}, {2, 3}, {4, 5}]


@pytest.mark.parametrize("scores", [torch.zeros(3), torch.zeros(3, 0), torch.tensor([[1.0, math.nan]])])
def test_scores_of_another_shape_are_refused(scores: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="difficulty: "):
        difficulty(scores)


@pytest.mark.parametrize(
    ("hardness", "length", "bands"),
    [
        (torch.zeros(2, 2), 2, 1),
        (torch.zeros(0), 2, 1),
        (torch.tensor([math.inf]), 1, 1),
        (torch.zeros(3), -1, 1),
        (torch.zeros(3), 3, 4),
        (torch.zeros(3), 3, 0),
    ],
)
def test_orders_that_make_no_sense_are_refused(hardness: torch.Tensor, length: int, bands: int) -> None:
    with pytest.raises(ValueError, match="curriculum_order: "):
        curriculum_order(hardness, length=length, seed=1, bands=bands)
