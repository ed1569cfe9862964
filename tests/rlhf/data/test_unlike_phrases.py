from rlhf.data.phrases import KNOWN, PHRASES
from rlhf.data.rubric import judge, parse
from rlhf.data.unlike_phrases import SHIFTS, UNLIKE


def test_no_name_thing_number_or_wording_is_known() -> None:
    known = " ".join(
        [*KNOWN.names, *KNOWN.items, *KNOWN.faults, *KNOWN.orders]
        + [text for texts in (*KNOWN.tickets.values(), *PHRASES.values()) for text in texts]
    ).lower()
    for words in (UNLIKE.names, UNLIKE.items, UNLIKE.faults, UNLIKE.orders):
        assert len(set(words)) == len(words)
        assert [word for word in words if word.lower() in known] == []
    wordings = [text for texts in UNLIKE.tickets.values() for text in texts]
    assert len(set(wordings)) == len(wordings) == 15
    assert not set(wordings) & {text for texts in KNOWN.tickets.values() for text in texts}


def test_every_intent_has_wordings_that_state_what_a_reply_has_to_repeat() -> None:
    assert set(UNLIKE.tickets) == set(KNOWN.tickets)
    for texts in UNLIKE.tickets.values():
        for text in texts:
            assert all(gap in text for gap in ("{name}", "{item}", "{order}", "{age}"))


def test_the_rubric_reads_replies_about_them() -> None:
    for name in UNLIKE.names:
        for item, order in zip(UNLIKE.items, UNLIKE.orders, strict=False):
            meta = {"action": "refund", "name": name, "order": order, "item": item}
            reply = f"Good day {name}. I opened order {order} for the {item}. I booked a full refund."
            assert [act.name for act in parse(reply)] == ["greet", "ack", "refund"]
            assert all(judge(meta, reply).features[f"{fact}_ok"] == 1.0 for fact in ("name", "order", "item"))


def test_a_shift_changes_what_it_says_and_nothing_else() -> None:
    assert SHIFTS["wording"].tickets is UNLIKE.tickets
    assert SHIFTS["wording"].names is KNOWN.names
    assert SHIFTS["facts"].tickets is KNOWN.tickets
    assert SHIFTS["facts"]._replace(tickets=UNLIKE.tickets) == SHIFTS["both"] == UNLIKE
