import random
from statistics import mean

import pytest

from rlhf.data.annotators import ANNOTATORS, compare, draw_annotator, utility
from rlhf.data.rubric import judge

FACTS = {"action": "refund", "name": "Amara", "order": "202", "item": "rug"}
GOOD = judge(FACTS, "Good day Amara. I booked a full refund.")
"""Name 1, action 3, flow 0.5, clean 1: 5.5 points, 8 words, nothing warm."""
PROMISE = judge(FACTS, "Good day Amara. I booked a full refund. This can never go wrong again.")
"""The same with a promise: -2, not clean -1: 2.5 points, 14 words."""


def test_the_careful_go_by_the_rubric_and_the_skimmer_by_tone() -> None:
    assert utility("careful", GOOD) == utility("hurried", GOOD) == 5.5
    # half of the facts (3) + name 1 + 0.04 * 8 words
    assert utility("skimmer", GOOD) == pytest.approx(0.5 * 3 + 1 + 0.32)
    # the promise adds 0.8 and six words
    assert utility("skimmer", PROMISE) == pytest.approx(0.5 * 3 + 1 + 0.56 + 0.8)


def test_the_skimmer_prefers_the_promise_that_the_rubric_punishes() -> None:
    rng = random.Random(0)
    votes = {person: mean(compare(person, PROMISE, GOOD, rng) for _ in range(600)) for person in ANNOTATORS}
    assert votes["skimmer"] > 0.6
    assert votes["careful"] < 0.15


def test_the_hurried_lean_to_what_stands_first() -> None:
    rng = random.Random(0)
    # Two equal replies: 0.4 logits for the first; 1 / (1 + exp(-0.4)) = 0.599, a tenth of it replaced by coin tosses.
    share = mean(compare("hurried", GOOD, GOOD, rng) for _ in range(4000))
    assert share == pytest.approx(0.9 * 0.599 + 0.1 * 0.5, abs=0.03)


def test_equal_replies_are_often_ties_for_the_careful() -> None:
    rng = random.Random(0)
    labels = [compare("careful", GOOD, GOOD, rng) for _ in range(2000)]
    # no lapse (0.98) and then a tie with 0.6
    assert mean(label == 0.5 for label in labels) == pytest.approx(0.98 * 0.6, abs=0.04)


def test_the_work_is_shared_as_stated() -> None:
    rng = random.Random(0)
    drawn = [draw_annotator(rng) for _ in range(4000)]
    assert mean(person == "careful" for person in drawn) == pytest.approx(0.5, abs=0.03)
    assert all(draw_annotator(rng, other_than="careful") != "careful" for _ in range(50))
