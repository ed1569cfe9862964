from dataclasses import replace
from pathlib import Path

from bench.promotion_race import race, wrong
from tasks.history import Move

FIRST = Move(
    when="2030-01-01T00:00:00+00:00", who="me", action="promote", model="policy", before=None, after="1",
    reason="why", evidence={}, number=1, id="a",
)  # fmt: skip
SECOND = replace(FIRST, before="1", after="2", number=2, id="b")
SAID = [{"id": "a", "before": None, "after": "1", "seen": None}, {"id": "b", "before": "1", "after": "2", "seen": "1"}]


def test_racing_promotions_lose_nothing(tmp_path: Path) -> None:
    found = race(tmp_path, processes=4, promotions=6)
    assert found["wrong"] == []
    assert found["accepted"] + found["refused"] == 24
    assert found["accepted"] > 1
    assert found["refused"] > 0  # they did race


def test_what_would_be_wrong_is_found() -> None:
    assert wrong(SAID, [FIRST, SECOND], "2") == []
    assert "the alias points at 1" in wrong(SAID, [FIRST, SECOND], "1")[0]
    assert wrong(SAID, [FIRST], "1") == ["b: accepted, and not in the history"]
    assert wrong(SAID[:1], [FIRST, SECOND], "2") == ["'b': in the history, and accepted by nobody"]
    assert "had seen 3" in wrong([SAID[0], {**SAID[1], "seen": "3"}], [FIRST, SECOND], "2")[0]
    torn = wrong(SAID, [FIRST, replace(SECOND, before="7", number=3)], "2")
    assert [line.split(",")[0] for line in torn] == ["the history's numbers are not 1", "move 3 begins at 7"]
