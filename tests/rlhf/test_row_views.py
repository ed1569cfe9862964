import pytest

from rlhf.row_views import Joined, View, chosen


def test_a_view_holds_the_rows_that_were_chosen_in_their_order():
    view = View("abcde", [3, 0, 3])
    assert (list(view), view[-1], len(view), list(view[:2])) == (["d", "a", "d"], "d", 3, ["d", "a"])
    assert list(chosen([5, 1, 7], lambda number: number > 3)) == [5, 7]
    assert not chosen([5], lambda number: number > 9)


def test_a_view_of_a_view_is_one_of_the_first():
    assert list(View(View("abcde", [4, 3, 2]), [1])) == ["d"]


def test_two_sequences_are_one():
    both = Joined([1, 2], [3])
    assert (list(both), len(both), both[1], both[2], both[-1]) == ([1, 2, 3], 3, 2, 3, 3)
    assert list(both[1:]) == [2, 3]
    with pytest.raises(IndexError):
        both[3]
