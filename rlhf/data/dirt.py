"""Dirt for the raw files of the embedded task: what real exports get wrong, so that validation has work to do."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Line = str
GIANT_CHARS = 50_000
"""Length of a response that a broken export ran together from many."""


def soil(
    rows: Sequence[Mapping[str, Any]],
    rng: random.Random,
    *,
    duplicate_share: float,
    contradiction_share: float,
    broken_share: float,
) -> tuple[list[Line], dict[str, int]]:
    """Write rows as JSON lines and put damaged ones between them.

    Args:
        rows: good rows, all of one kind; each of them stays in the result.
        rng: chooses which rows are copied, and where the copies go.
        duplicate_share: exact copies, relative to the number of rows.
        contradiction_share: copies with the label the other way round; only rows with a decided label have any.
        broken_share: copies that are broken, each kind of damage in turn.

    Returns:
        The lines, and the numbers of duplicates, contradictions and broken rows.
    """
    extra: list[Line] = [_line(rng.choice(rows)) for _ in range(round(duplicate_share * len(rows)))]
    counts = {"duplicates": len(extra), "contradictions": 0, "broken": 0}
    decided = [row for row in rows if row.get("label") in (0, 1)]
    if decided:
        counts["contradictions"] = round(contradiction_share * len(rows))
        extra += [_line(_contradiction(row)) for row in rng.sample(decided, counts["contradictions"])]
    ways = [damage for damage in DAMAGES if damage(rows[0], rng) is not None]
    counts["broken"] = round(broken_share * len(rows))
    extra += [str(ways[turn % len(ways)](rng.choice(rows), rng)) for turn in range(counts["broken"])]
    lines = [_line(row) for row in rows]
    for line in extra:
        lines.insert(rng.randint(0, len(lines)), line)
    return lines, counts


def _line(row: Mapping[str, Any]) -> Line:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def _contradiction(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**row, "id": f"{row['id']}x", "label": 1 - row["label"]}


def _answer(row: Mapping[str, Any]) -> str | None:
    """The field whose damage makes a row useless, where it has an answer."""
    return next((name for name in ("response_b", "response") if name in row), None)


def _without_answer(row: Mapping[str, Any], _: random.Random) -> Line | None:
    name = _answer(row)
    return _line({**row, name: ""}) if name else None


def _missing_field(row: Mapping[str, Any], _: random.Random) -> Line | None:
    gone = _answer(row) or "prompt"
    return _line({name: value for name, value in row.items() if name != gone})


def _cut_off(row: Mapping[str, Any], rng: random.Random) -> Line | None:
    line = _line(row)
    return line[: rng.randint(len(line) // 4, len(line) - 2)]


def _twins(row: Mapping[str, Any], _: random.Random) -> Line | None:
    return _line({**row, "response_b": row["response_a"]}) if "response_a" in row else None


def _nan_label(row: Mapping[str, Any], _: random.Random) -> Line | None:
    # Python writes and reads NaN although JSON has no such word; so do many exports.
    return _line({**row, "label": float("nan")}) if "label" in row else None


def _lost_characters(row: Mapping[str, Any], rng: random.Random) -> Line | None:
    name = _answer(row)
    if name is None:
        return None
    place = rng.randrange(len(row[name]))
    return _line({**row, name: f"{row[name][:place]}\ufffd{row[name][place + 1 :]}"})


def _repeated_key(row: Mapping[str, Any], _: random.Random) -> Line | None:
    return _line(row)[:-1] + f',"id":{json.dumps(row["id"])}}}'


def _giant(row: Mapping[str, Any], _: random.Random) -> Line | None:
    name = _answer(row)
    return _line({**row, name: (row[name] + " ") * (GIANT_CHARS // len(row[name]))}) if name else None


DAMAGES: tuple[Callable[[Mapping[str, Any], random.Random], Line | None], ...] = (
    _without_answer, _missing_field, _cut_off, _twins, _nan_label, _lost_characters, _repeated_key, _giant,
)  # fmt: skip
"""Ways to break a row; one that does not apply to a kind of row returns None."""
