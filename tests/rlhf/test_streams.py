"""Streams: functions of the place in the run, the same whenever it is asked for."""

import torch

from rlhf.streams import prompt_indices, random_source


def test_a_lap_holds_every_prompt_once_and_laps_differ():
    lap = prompt_indices(7, start=0, length=7, seed=1)
    following = prompt_indices(7, start=7, length=7, seed=1)
    assert sorted(lap) == sorted(following) == list(range(7))
    assert lap != following


def test_windows_of_any_size_read_the_same_stream():
    whole = prompt_indices(5, start=0, length=23, seed=2)
    assert [index for start in range(0, 21, 3) for index in prompt_indices(5, start=start, length=3, seed=2)] == whole[
        :21
    ]


def test_equal_places_give_equal_numbers_and_others_do_not():
    def draw(*place):
        return torch.rand(4, generator=random_source(*place)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({tuple(draw(*place)) for place in ((1, 2, 3), (1, 3, 2), (12, 3), (1, 23))}) == 4
