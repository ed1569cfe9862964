import pytest

from rlhf.answer_pairs import JudgedPair, every_pair, pairs_by_score, pairs_by_verdict, usable


def test_cut_empty_and_repeated_answers_stand_in_no_pair() -> None:
    texts = ["Yes.", "No", " ", "Yes. ", "Maybe.", ""]
    assert usable(texts, [True, False, True, True, True, True]) == [0, 4]
    assert usable([], []) == []


def test_bytes_that_are_no_text_stand_in_no_pair_since_validate_would_refuse_it() -> None:
    assert usable(["Yes \ufffd.", "Yes.", "\ufffd"], [True, True, True]) == [1]


def test_a_repeat_of_a_cut_answer_is_kept() -> None:
    assert usable(["Yes.", "Yes."], [False, True]) == [1]


def test_every_pair_is_there_once() -> None:
    assert every_pair(3) == [(0, 1), (0, 2), (1, 2)]
    assert every_pair(1) == []


def test_all_pairs_by_score() -> None:
    # 2 > -1; 2 and 2.00005 differ by less than the tie of 1e-4; -1 < 2.00005.
    assert pairs_by_score([2.0, -1.0, 2.00005], "all") == [
        JudgedPair(0, 1, 1.0),
        JudgedPair(0, 2, 0.5),
        JudgedPair(1, 2, 0.0),
    ]


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ([0.0, 3.0, -2.0, 1.0], [JudgedPair(1, 2, 1.0)]),
        ([-2.0, 0.0, 3.0], [JudgedPair(0, 2, 0.0)]),
        ([1.0, 1.0, 0.0, 0.0], [JudgedPair(0, 2, 1.0)]),  # the earliest of each
        ([1.0, 1.00005], []),  # a tie has no best
        ([1.0], []),
        ([], []),
    ],
)
def test_best_and_worst_by_score(scores: list[float], wanted: list[JudgedPair]) -> None:
    assert pairs_by_score(scores, "best_worst") == wanted


def test_verdicts_as_they_are() -> None:
    assert pairs_by_verdict({(1, 2): 0.5, (0, 1): 0.75}, "all") == [JudgedPair(0, 1, 0.75), JudgedPair(1, 2, 0.5)]


def test_best_and_worst_by_verdict() -> None:
    # Mean wins: 0 has (1 + 0.5) / 2 = 0.75, 1 has (0 + 0) / 2 = 0, 2 has (0.5 + 1) / 2 = 0.75: earliest best is 0.
    assert pairs_by_verdict({(0, 1): 1.0, (0, 2): 0.5, (1, 2): 0.0}, "best_worst") == [JudgedPair(0, 1, 1.0)]


def test_a_failed_comparison_gives_no_pair() -> None:
    # 0 beats 1 and 1 beats 2, so 0 is best (1.0) and 2 worst (0.0), but nobody compared the two.
    assert pairs_by_verdict({(0, 1): 1.0, (1, 2): 1.0}, "best_worst") == []
    assert pairs_by_verdict({}, "best_worst") == []


def test_two_compared_answers_are_best_and_worst() -> None:
    assert pairs_by_verdict({(0, 1): 0.25}, "best_worst") == [JudgedPair(0, 1, 0.25)]
    assert pairs_by_verdict({(0, 1): 0.5}, "best_worst") == []
