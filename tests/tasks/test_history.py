from pathlib import Path

from tasks.history import Action, Move, append_move, champions_in_force, history_file, read_moves, with_discrepancies


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
    assert read_moves(tmp_path, "policy") == [move(None, "1"), move("1", "2")]


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
