"""Counts of words and n-grams by hand."""

import pytest

from rlhf.evaluation.text_metrics import distinct_n, end_rate, length_words, repetition


def test_length() -> None:
    assert length_words("  We will  send it\ntoday. ") == 5
    assert length_words("") == 0


def test_repetition_by_hand() -> None:
    # "a b a b a b": 4-grams abab, baba, abab -> 2 of 3 distinct
    assert repetition("a b a b a b") == pytest.approx(1 / 3)
    assert repetition("one two three four five") == 0
    # 100 equal words: 97 4-grams, one distinct
    assert repetition("no " * 100) == pytest.approx(96 / 97)
    assert repetition("too short") == 0
    assert repetition("a a b", n=1) == pytest.approx(1 / 3)


def test_distinct_by_hand() -> None:
    # ab, bc | ab: 2 of 3
    assert distinct_n(["a b c", "a b"]) == pytest.approx(2 / 3)
    assert distinct_n(["a b c"]) == 1
    assert distinct_n(["a", ""]) == 0


def test_distinct_falls_with_copies_where_repetition_does_not() -> None:
    text = "thank you for your order"
    assert distinct_n([text] * 10) == pytest.approx(0.1)
    assert repetition(text) == 0


def test_end_rate() -> None:
    assert end_rate([True, False, True, True]) == 0.75
    with pytest.raises(ValueError, match="no response"):
        end_rate([])


def test_bad_n_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        repetition("a b", n=0)
