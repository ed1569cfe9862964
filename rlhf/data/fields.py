"""What all readers share: a row's columns, of which each reader takes some, and what a reader is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlhf.data.records import Kind, Message, Record, RowError, with_origin

Row: TypeAlias = Mapping[str, Any]
Found: TypeAlias = list[tuple[Kind, Record]]


class Fields:
    """The columns of one row; what no reader takes is kept as `meta`."""

    def __init__(self, row: Row) -> None:
        self._left = dict(row)

    def need(self, name: str) -> Any:
        """Take a column.

        Raises:
            RowError: it is missing or null.
        """
        value = self.take(name)
        if value is None:
            raise RowError(name, None, "missing field")
        return value

    def take(self, name: str) -> Any:
        """Take a column that may be missing."""
        return self._left.pop(name, None)

    def take_number(self, name: str) -> float | None:
        """Take a column if it holds a number, NaN included; anything else stays where it is.

        A whole number too large for a float is an infinity, which no contract admits.
        """
        value = self._left.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return as_float(self._left.pop(name))

    def take_text(self, name: str) -> str | None:
        """Take a column if it holds text; anything else stays where it is."""
        return str(self._left.pop(name)) if isinstance(self._left.get(name), str) else None

    def finish(self, kind: Kind, record: Record) -> tuple[Kind, Record]:
        """Complete a record with the id and with the columns that are left; the source is not known yet."""
        rest = {name: value for name, value in self._left.items() if name != "id" and value is not None}
        # A record that was canonical once has its leftovers in `meta` already; they are not nested again.
        meta = {**rest.pop("meta"), **rest} if isinstance(rest.get("meta"), dict) else rest
        return kind, with_origin(kind, record, source="", identity=self._left.get("id"), meta=meta)


def as_float(value: float) -> float:
    """A number as a float; a whole number beyond all floats is an infinity of its sign."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclass(frozen=True, slots=True)
class Reader:
    """One format."""

    shape: str
    """What its rows look like, for messages."""
    fits: Callable[[Row], bool]
    """Whether a row has this shape; looks at columns, not at the quality of what they hold."""
    read: Callable[[Row], Found]
    """Records of one row; raises RowError."""


def has(row: Row, *names: str) -> bool:
    """Whether a row has all of these columns."""
    return all(name in row for name in names)


def instruction_prompt(fields: Fields) -> list[Message]:
    """The conversation of a row with `instruction` and perhaps `input`, `system` and `history` (Alpaca).

    Raises:
        RowError: the instruction is missing or not text, or the history is not pairs of texts.
    """
    instruction, extra = fields.need("instruction"), fields.take("input")
    if not isinstance(instruction, str):
        raise RowError("instruction", instruction, "not text")
    before: list[Message] = []
    if isinstance(system := fields.take("system"), str) and system.strip():
        before.append({"role": "system", "content": system})
    history = fields.take("history") or []
    if not isinstance(history, list):
        raise RowError("history", history, "not a list of questions and answers")
    for index, turn in enumerate(history):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(said, str) for said in turn):
            raise RowError(f"history[{index}]", turn, "not a question and an answer")
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = f"{instruction}\n\n{extra}" if isinstance(extra, str) and extra.strip() else instruction
    return [*before, {"role": "user", "content": asked}]
