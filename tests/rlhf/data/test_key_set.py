import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlhf.data.key_set import KeySet


def keys(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def test_a_key_is_new_once() -> None:
    known = KeySet()
    assert known.add(keys(3, 1, 3)).tolist() == [True, True, False]
    assert known.add(keys(2**64 - 1, 1)).tolist() == [True, False]
    assert known.holds(keys(3, 2, 2**64 - 1)).tolist() == [True, False, True]
    known.remove(keys(3, 7))
    assert known.add(keys(3, 1)).tolist() == [True, False]


def test_nothing_is_in_an_empty_set() -> None:
    assert KeySet().holds(keys(1)).tolist() == [False]
    assert KeySet().add(keys()).tolist() == []


@given(st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=20))
def test_blocks_are_taken_in_as_one_by_one(blocks: list[list[int]]) -> None:
    known, plain = KeySet(), set[int]()
    for block in blocks:
        expected = [not (number in plain or plain.add(number)) for number in block]
        assert known.add(keys(*block)).tolist() == expected
    assert known.holds(keys(*range(41))).tolist() == [number in plain for number in range(41)]
