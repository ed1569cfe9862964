"""Scores worked by hand from the table in the module's docstring."""

import random

import pytest

from rlhf.data.phrases import PHRASES
from rlhf.data.rubric import MAX_POINTS, applies, judge, parse
from rlhf.data.support_desk import draw_reply, draw_ticket, faultless_reply, render

FACTS = {"action": "refund", "name": "Amara", "order": "202", "item": "rug"}
"""Right waiting time of a refund: 5 days."""

PERFECT = (
    "Good day Amara. We regret the hassle. I opened order 202 for the rug. I booked a full refund. That needs 5 days. "
    "Is there more to solve?"
)


def test_a_perfect_reply_gets_every_point() -> None:
    # name 1 + order 1.5 + item 0.5 + action 3 + sla 1 + empathy 1 + close 0.5 + flow 0.5 + clean 1 = 10
    gold = judge(FACTS, PERFECT)
    assert gold.points == MAX_POINTS == 10.0
    assert gold.features["action_ok"] == gold.features["order_ok"] == gold.features["name_ok"] == 1.0
    assert gold.features["sentences"] == 6


@pytest.mark.parametrize(
    ("old", "new", "points"),
    [
        ("202", "203", 7.0),  # order +1.5 becomes -1.5
        ("Amara", "Boris", 8.0),  # name +1 becomes -1
        ("the rug", "the tent", 9.0),  # item +0.5 becomes -0.5
        ("5 days", "6 days", 8.0),  # waiting time +1 becomes -1
        ("I booked a full refund.", "I set up a repair.", 5.0),  # remedy +3 becomes -2; the rest is untouched
        ("That needs", "This can never go wrong again. That needs", 7.0),  # promise -2, no longer clean -1
        ("That needs", "Try to be less difficult. That needs", 7.0),  # rude -2, clean -1
        ("We regret the hassle.", "We regret the hassle. We regret the hassle.", 9.25),  # second apology -0.75
        ("We regret the hassle.", "It is a joy to serve you.", 7.5),  # empathy -1, filler -0.5, clean -1
        ("That needs", "It is a joy to serve you. It is a joy to serve you. That needs", 7.75),  # -0.5 -0.75, clean -1
        ("I booked a full refund.", "I booked a whole refund.", 5.0),  # remedy lost -3, malformed -1, clean -1
        ("Is there more to solve?", "", 9.5),  # closing words -0.5; nothing else depends on them
        ("5 days", "1 days", 7.0),  # not the grammar: waiting time lost -1, malformed -1, clean -1
    ],
)
def test_each_fault_costs_what_the_table_says(old: str, new: str, points: float) -> None:
    assert judge(FACTS, PERFECT.replace(old, new)).points == pytest.approx(points)


def test_flow_needs_the_greeting_first_and_the_closing_words_last() -> None:
    reply = "I booked a full refund. Good day Amara."
    # name 1 + action 3 + clean 1, no flow
    assert judge(FACTS, reply).points == 5.0
    assert judge(FACTS, "Good day Amara. I booked a full refund.").points == 5.5


def test_saying_an_act_twice_costs_half_a_point() -> None:
    twice = PERFECT.replace("I booked a full refund.", "I booked a full refund. You get your money back.")
    gold = judge(FACTS, twice)
    assert gold.points == 9.5
    assert gold.features["action_ok"] == 0.0  # one remedy was wanted, and once


def test_a_reply_that_never_ends_is_neither_ended_nor_clean() -> None:
    assert judge(FACTS, PERFECT, ended=False).points == 8.0


def test_words_beyond_45_cost_a_twentieth_each() -> None:
    long = "Good day Amara. " + "nonsense " * 50 + "."
    # name 1, flow 0.5, one malformed sentence -1, 3 words + 50 + "." = 54 words: 9 too many, -0.45
    assert judge(FACTS, long).points == pytest.approx(1 + 0.5 - 1 - 0.45)


def test_an_empty_reply_gets_nothing() -> None:
    assert judge(FACTS, "").points == 0.0


def test_every_phrase_of_the_grammar_is_understood_as_its_own_act() -> None:
    values = {"name": "Amara", "order": "202", "item": "rug", "span": "1 day"}
    for act, phrases in PHRASES.items():
        for phrase in phrases:
            assert [found.name for found in parse(phrase.format(**values))] == [act]


def test_the_grammar_never_says_what_the_rubric_cannot_read() -> None:
    rng = random.Random(5)
    for _ in range(300):
        ticket = draw_ticket(rng)
        assert judge(ticket.facts(), render(draw_reply(ticket, rng)[0])).features["malformed"] == 0
        assert judge(ticket.facts(), render(faultless_reply(ticket, rng))).points == 10.0


def test_it_applies_only_where_the_facts_are() -> None:
    assert applies(FACTS)
    assert not applies({**FACTS, "action": "dance"})
    assert not applies({"action": "refund"})
    assert not applies({})
