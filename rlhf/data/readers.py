"""Readers: one function for each shape of row, from a parsed JSON object to canonical records.

A new format is one function and one line in `READERS`. Detection gives each row to the first reader that fits it (see
`rlhf.data.detect`), so the more particular ones stand first.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlhf.data.conversations import (
    as_answer,
    as_messages,
    as_prompt,
    common_prompt,
    is_transcript,
    last_answer,
    merge_neighbours,
    split_transcript,
)
from rlhf.data.records import Kind, Message, Record, RowError, demonstration, pair, with_origin

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
        """Take a column if it holds a number, NaN included; anything else stays where it is."""
        value = self._left.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(self._left.pop(name))

    def take_text(self, name: str) -> str | None:
        """Take a column if it holds text; anything else stays where it is."""
        return str(self._left.pop(name)) if isinstance(self._left.get(name), str) else None

    def finish(self, kind: Kind, record: Record) -> tuple[Kind, Record]:
        """Complete a record with the id and with the columns that are left; the source is not known yet."""
        rest = {name: value for name, value in self._left.items() if name != "id" and value is not None}
        # A record that was canonical once has its leftovers in `meta` already; they are not nested again.
        meta = {**rest.pop("meta"), **rest} if isinstance(rest.get("meta"), dict) else rest
        return kind, with_origin(kind, record, source="", identity=self._left.get("id"), meta=meta)


@dataclass(frozen=True, slots=True)
class Reader:
    """One format."""

    shape: str
    """What its rows look like, for messages."""
    fits: Callable[[Row], bool]
    """Whether a row has this shape; looks at columns, not at the quality of what they hold."""
    read: Callable[[Row], Found]
    """Records of one row; raises RowError."""


def _has(row: Row, *names: str) -> bool:
    return all(name in row for name in names)


def _is_single_judgement(row: Row) -> bool:
    """Rows that call one answer good or bad (KTO): imitating the bad ones would be wrong."""
    return isinstance(row.get("label"), bool)


def _probability(value: Any) -> float:
    """A comparison's label as the probability that the first answer is better."""
    words = {"a": 1.0, "b": 0.0, "tie": 0.5}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError("label", value, "not a number")
    if math.isnan(value):
        raise RowError("label", value, "not a finite number")
    if not 0.0 <= value <= 1.0:
        raise RowError("label", value, "not in [0, 1]")
    return float(value)


def _read_comparison(row: Row) -> Found:
    fields = Fields(row)
    prompt = as_prompt(fields.need("prompt"))
    answers = [as_answer(fields.take(name), name) for name in ("response_a", "response_b")]
    label = _probability(fields.need("label"))
    record = pair(
        prompt,
        *answers,
        first_is_better=label,
        annotator=fields.take_text("annotator"),
        scores=(fields.take_number("score_a"), fields.take_number("score_b")),
    )
    return [fields.finish("pair", record)]


def _preference(fields: Fields, prompt: list[Message] | None) -> Record:
    """The pair of a row with `chosen` and `rejected`, as answers or as whole conversations."""
    chosen, rejected = fields.need("chosen"), fields.need("rejected")
    if prompt is None or all(isinstance(value, list) and len(value) > 1 for value in (chosen, rejected)):
        prompt, chosen, rejected = common_prompt(as_messages(chosen, "chosen"), as_messages(rejected, "rejected"))
    certainty = fields.take_number("label")
    if certainty is not None and not certainty >= 0.5:  # also true for NaN, which no comparison with >= admits
        raise RowError("label", certainty, "not in [0.5, 1]")
    return pair(
        prompt,
        as_answer(chosen, "chosen"),
        as_answer(rejected, "rejected"),
        first_is_better=1.0 if certainty is None else certainty,
        annotator=fields.take_text("annotator"),
        scores=(fields.take_number("score_chosen"), fields.take_number("score_rejected")),
    )


def _read_preference(row: Row) -> Found:
    fields = Fields(row)
    value = fields.take("prompt")
    record = _preference(fields, None if value is None else as_prompt(value))
    if is_transcript(value):  # transcripts put a space after "Assistant:", which is not part of the answer
        record = {**record, "chosen": record["chosen"].strip(), "rejected": record["rejected"].strip()}
    return [fields.finish("pair", record)]


def _read_probe(row: Row) -> Found:
    fields = Fields(row)
    record = _preference(fields, as_prompt(fields.need("prompt")))
    return [fields.finish("probe", record)]


def _read_transcripts(row: Row) -> Found:
    fields = Fields(row)
    chosen, rejected = fields.need("chosen"), fields.need("rejected")
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not is_transcript(value):
            raise RowError(name, value, "not a transcript of Human and Assistant turns")
    prompt, better, worse = common_prompt(split_transcript(chosen), split_transcript(rejected))
    return [fields.finish("pair", pair(merge_neighbours(prompt), better, worse))]


def _alpaca_prompt(fields: Fields) -> list[Message]:
    instruction, extra = fields.need("instruction"), fields.take("input")
    if not isinstance(instruction, str):
        raise RowError("instruction", instruction, "not text")
    before: list[Message] = []
    if isinstance(system := fields.take("system"), str) and system.strip():
        before.append({"role": "system", "content": system})
    for index, turn in enumerate(fields.take("history") or []):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(said, str) for said in turn):
            raise RowError(f"history[{index}]", turn, "not a question and an answer")
        before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    asked = f"{instruction}\n\n{extra}" if isinstance(extra, str) and extra.strip() else instruction
    return [*before, {"role": "user", "content": asked}]


def _read_alpaca(row: Row) -> Found:
    fields = Fields(row)
    record = demonstration(_alpaca_prompt(fields), as_answer(fields.take("output"), "output"))
    return [fields.finish("demonstration", record)]


def _read_alpaca_preference(row: Row) -> Found:
    """A pair, and a demonstration as well where the row also has an `output`."""
    fields = Fields(row)
    prompt = _alpaca_prompt(fields)
    output = fields.take("output")
    found = [fields.finish("pair", _preference(fields, prompt))]
    if isinstance(output, str):
        found.append(fields.finish("demonstration", demonstration(prompt, output)))
    return found


def _read_sharegpt_preference(row: Row) -> Found:
    fields = Fields(row)
    prompt = as_messages(fields.need("conversations"), "conversations")
    if isinstance(system := fields.take("system"), str) and system.strip():
        prompt = [{"role": "system", "content": system}, *prompt]
    return [fields.finish("pair", _preference(fields, prompt))]


def _read_conversation(row: Row) -> Found:
    """A whole conversation is a demonstration of its last answer; one that ends with the user is a prompt."""
    fields = Fields(row)
    name = "messages" if "messages" in row else "conversations"
    messages = as_messages(fields.need(name), name)
    if isinstance(system := fields.take("system"), str) and system.strip():
        messages = [{"role": "system", "content": system}, *messages]
    if messages[-1]["role"] == "user":
        return [fields.finish("prompt", {"prompt": messages})]
    return [fields.finish("demonstration", demonstration(*last_answer(messages, name)))]


def _read_demonstration(row: Row) -> Found:
    fields = Fields(row)
    value = fields.need("prompt")
    name = "response" if "response" in row or "completion" not in row else "completion"
    answer = as_answer(fields.take(name), name)
    record = demonstration(as_prompt(value), answer.strip() if is_transcript(value) else answer)
    return [fields.finish("demonstration", record)]


def _read_prompt(row: Row) -> Found:
    fields = Fields(row)
    return [fields.finish("prompt", {"prompt": as_prompt(fields.need("prompt"))})]


def _is_probe(row: Row) -> bool:
    meta = row.get("meta")
    named = "probe" in row or (isinstance(meta, dict) and "probe" in meta)
    return named and _has(row, "prompt", "chosen", "rejected")


READERS: dict[str, Reader] = {
    "comparison": Reader(
        "prompt, response_a, response_b, label (1: a is better, 0: b, 0.5: tie)",
        lambda row: _has(row, "response_a", "response_b"),
        _read_comparison,
    ),
    "probe": Reader("prompt, chosen, rejected, probe (the one fact that differs)", _is_probe, _read_probe),
    "sharegpt_preference": Reader(
        "conversations (from, value), chosen, rejected",
        lambda row: _has(row, "conversations", "chosen", "rejected"),
        _read_sharegpt_preference,
    ),
    "alpaca_preference": Reader(
        "instruction, input, chosen, rejected",
        lambda row: _has(row, "instruction", "chosen", "rejected"),
        _read_alpaca_preference,
    ),
    "hh": Reader(
        'chosen and rejected as whole "Human: ... Assistant: ..." transcripts',
        lambda row: "prompt" not in row and is_transcript(row.get("chosen")) and is_transcript(row.get("rejected")),
        _read_transcripts,
    ),
    "preference": Reader(
        "prompt, chosen, rejected (texts or chat messages; the prompt may be inside chosen and rejected)",
        lambda row: _has(row, "chosen", "rejected") and ("prompt" in row or isinstance(row["chosen"], list)),
        _read_preference,
    ),
    "sharegpt": Reader(
        "conversations (from, value)",
        lambda row: "conversations" in row and not _is_single_judgement(row),
        _read_conversation,
    ),
    "alpaca": Reader("instruction, input, output", lambda row: _has(row, "instruction", "output"), _read_alpaca),
    "messages": Reader(
        "messages (role, content)",
        lambda row: "messages" in row and not _has(row, "chosen", "rejected") and not _is_single_judgement(row),
        _read_conversation,
    ),
    "demonstration": Reader(
        "prompt, response (or completion)",
        lambda row: "prompt" in row and ("response" in row or "completion" in row) and not _is_single_judgement(row),
        _read_demonstration,
    ),
    "prompt": Reader(
        "prompt",
        lambda row: isinstance(row.get("prompt"), (str, list)) and not _is_single_judgement(row),
        _read_prompt,
    ),
}
