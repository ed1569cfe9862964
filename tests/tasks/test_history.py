from dataclasses import replace
from pathlib import Path

from tasks.history import (
    LONGEST_TAG,
    Action,
    Move,
    append_move,
    begin_move,
    begun_move,
    champions_in_force,
    end_move,
    history_file,
    read_moves,
    tag_of,
    with_discrepancies,
)


def move(before: str | None, after: str, action: Action = "promote", model: str = "policy") -> Move:
    return Move(
        when="2030-01-01T00:00:00+00:00", who="me", action=action, model=model, before=before, after=after,
        reason="why", evidence={"win": 0.8},
    )  # fmt: skip


def test_moves_are_appended_and_read_back_without_torn_lines(tmp_path: Path) -> None:
    append_move(tmp_path, move(None, "1"))
    append_move(tmp_path, move(None, "9", model="other"))
    append_move(tmp_path, move("1", "2"))
    with history_file(tmp_path).open("a") as stream:
        stream.write('{"model": "policy", "aft')
    append_move(tmp_path, move("2", "3"))  # the torn line swallows nothing
    assert read_moves(tmp_path, "policy") == [move(None, "1"), move("1", "2"), move("2", "3")]


def test_moves_of_other_machines_come_from_tags(tmp_path: Path) -> None:
    ours = replace(move(None, "1"), number=1, id="a", registry="7")
    theirs = replace(move("1", "2"), number=2, id="b", registry="7", evidence={"promote": True})
    third = replace(move("2", "3"), number=3, id="c", registry="7")
    gone = replace(move(None, "9"), number=1, id="d", registry="6")  # of a registered model that was deleted
    for one in (gone, ours, third):
        append_move(tmp_path, one)
    tags = dict(tag_of(one) for one in (ours, theirs, third)) | {"ratchet.move.4": "no JSON", "ratchet.move.5": "[1]"}
    assert read_moves(tmp_path, "policy", registry="7", tags=tags) == [ours, theirs, third]


def test_a_tag_fits_and_keeps_what_matters() -> None:
    evidence = {"promote": True, "sentence": "s" * 9000, "reasons": ["r" * 9000], "prompts": 400, "p_value": 0.1}
    key, value = tag_of(replace(move("1", "2"), number=12, reason="w" * 9000, evidence=evidence))
    assert key == "ratchet.move.12"
    assert len(value) <= LONGEST_TAG
    assert '"prompts": 400' in value
    _, value = tag_of(replace(move("1", "2"), reason="\u20ac" * 9000, evidence={"sentence": '"' * 9000}))
    assert len(value) <= LONGEST_TAG


def test_what_was_begun_is_kept_until_it_is_over(tmp_path: Path) -> None:
    assert begun_move(tmp_path) is None
    begin_move(tmp_path, move(None, "1"))
    assert begun_move(tmp_path) == move(None, "1")
    end_move(tmp_path)
    end_move(tmp_path)
    assert begun_move(tmp_path) is None


def test_what_happened_elsewhere_is_shown_where_it_happened() -> None:
    shown = with_discrepancies([move(None, "1"), move("3", "4")], "5", "policy")
    assert [(m.action, m.before, m.after) for m in shown] == [
        ("promote", None, "1"),
        ("moved elsewhere", "1", "3"),
        ("promote", "3", "4"),
        ("moved elsewhere", "4", "5"),
    ]
    assert with_discrepancies([], None, "policy") == []


def test_rolling_back_twice_goes_back_two_champions() -> None:
    moves = [move(None, "1"), move("1", "2"), move("2", "3")]
    assert champions_in_force(moves) == ["1", "2", "3"]
    moves.append(move("3", "2", "rollback"))
    assert champions_in_force(moves) == ["1", "2"]
    moves.append(move("2", "1", "rollback"))
    assert champions_in_force(moves) == ["1"]
    # A rollback to a version of choice is a step forward of its own.
    assert champions_in_force([*moves[:3], move("3", "1", "rollback")]) == ["1", "2", "3", "1"]


def test_an_alias_set_back_by_hand_takes_the_last_off() -> None:
    moves = [move(None, "1"), move("1", "2"), move("2", "3")]
    assert champions_in_force(with_discrepancies(moves, "2", "policy")) == ["1", "2"]
    assert champions_in_force(with_discrepancies(moves, "7", "policy")) == ["1", "2", "3", "7"]
    assert champions_in_force(with_discrepancies(moves, None, "policy")) == ["1", "2", "3"]
    # A promotion of the one before is no way back.
    assert champions_in_force([*moves, move("3", "2")]) == ["1", "2", "3", "2"]
