from rlhf.data.phrases import FAULTS, ITEMS, NAMES, ORDERS, PHRASES, TICKETS


def test_the_task_has_the_size_it_was_designed_for() -> None:
    assert (len(NAMES), len(ITEMS), len(ORDERS), len(FAULTS), len(TICKETS)) == (23, 16, 80, 6, 5)
    assert (ORDERS[0], ORDERS[-1]) == ("201", "280")
    assert all(3 <= len(phrases) <= 4 for phrases in PHRASES.values())


def test_no_two_phrases_are_the_same() -> None:
    every = [phrase for phrases in PHRASES.values() for phrase in phrases]
    assert len(set(every)) == len(every)


def test_a_phrase_is_one_sentence() -> None:
    for phrases in PHRASES.values():
        for phrase in phrases:
            assert phrase[-1] in ".?!"
            assert sum(phrase.count(sign) for sign in ".?!") == 1


def test_every_ticket_states_what_a_reply_has_to_repeat() -> None:
    for texts in TICKETS.values():
        for text in texts:
            assert all(gap in text for gap in ("{name}", "{item}", "{order}", "{age}"))
