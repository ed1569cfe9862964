"""The contract of each kind of canonical record, as pandera schemas over chunks of rows.

A reader guarantees that a row has the columns and types of its kind; what the columns may hold is said here and only
here. Columns of one's own are checked by adding to `contract`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pandera.pandas as pa

from rlhf.data.intake import Refused, Row
from rlhf.data.records import ANSWERS, KINDS, Kind, Record, answers_of, shorten

REPLACEMENT = "\ufffd"
"""What decoders put where they lost a character: the text was read in a wrong encoding before it came here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Sizes that a record may have, characters."""

    prompt_chars: int
    response_chars: int


def check(rows: Sequence[Row], limits: Limits) -> tuple[list[Row], list[Refused]]:
    """Hold rows against the contract of their kind.

    Args:
        rows: a chunk of rows, kinds mixed.
        limits: sizes.

    Returns:
        The rows that keep it, in order, and every failure of the others (a row may fail in several ways).
    """
    refused: list[Refused] = []
    bad: set[int] = set()
    for kind in KINDS:
        places = [place for place, row in enumerate(rows) if row.kind == kind]
        if not places:
            continue
        flat = [_flat(kind, rows[place].record) for place in places]
        # By column, since pandas takes four times as long to find the columns of a list of rows.
        frame = pd.DataFrame({name: [row[name] for row in flat] for name in flat[0]}, index=places)
        for place, field, value, reason in _failures(contract(kind, limits), frame):
            row = rows[place]
            refused.append(Refused(row.file, row.line, field, value, reason))
            bad.add(place)
    refused.sort(key=lambda failure: (failure.file, failure.line))
    return [row for place, row in enumerate(rows) if place not in bad], refused


def contract(kind: Kind, limits: Limits) -> pa.DataFrameSchema:
    """The schema of one kind, over the columns that `_flat` makes of a record."""
    columns = {
        "id": pa.Column(str, pa.Check.str_length(min_value=1, error="empty text")),
        "prompt": pa.Column(str, _text_checks(limits.prompt_chars)),
        "prompt.last_role": pa.Column(str, pa.Check.equal_to("user", error="does not end with the user")),
        "prompt.empty_turns": pa.Column(int, pa.Check.equal_to(0, error="empty turn")),
        "meta.unlike": pa.Column(str, _unlike_check(kind)),
    }
    frame_checks = []
    if kind == "ranking":
        columns |= _ranking_columns(limits)
    else:
        columns |= {name: pa.Column(str, _text_checks(limits.response_chars)) for name in ANSWERS[kind]}
    if kind in ("pair", "probe"):
        columns["label"] = pa.Column(float, pa.Check.in_range(0.5, 1.0, error="not in [0.5, 1]"))
        different = pa.Check(
            lambda frame: frame["chosen"].str.strip() != frame["rejected"].str.strip(), error="chosen equals rejected"
        )
        frame_checks.append(different)
    if kind == "probe":
        columns["meta.probe"] = pa.Column(str, pa.Check.str_length(min_value=1, error="empty text"))
    return pa.DataFrameSchema(columns, checks=frame_checks)


def _ranking_columns(limits: Limits) -> dict[str, pa.Column]:
    """A ranking's answers: each is held to the same as any other, there are several, and no two of them are equal."""
    return {
        "responses": pa.Column(str, _text_checks()),
        "responses.shortest": pa.Column(str, pa.Check(lambda column: column.str.strip() != "", error="empty text")),
        "responses.longest": pa.Column(str, _length_check(limits.response_chars)),
        "responses.number": pa.Column(int, pa.Check.ge(2, error="fewer than two responses")),
        "responses.equal": pa.Column(int, pa.Check.equal_to(0, error="two responses are equal")),
    }


def _unlike_check(kind: Kind) -> pa.Check:
    """Only prompts are kept for measuring as unlike the others, and nothing but true or false is a mark of one."""
    if kind == "prompt":
        return pa.Check.isin(["null", "true", "false"], error="neither true nor false")
    return pa.Check.ne("true", error="only prompts can be unlike the others")


def _length_check(longest: int) -> pa.Check:
    return pa.Check.str_length(max_value=longest, error=f"longer than {longest} characters")


def _text_checks(longest: int | None = None) -> list[pa.Check]:
    return [
        pa.Check(lambda column: column.str.strip() != "", error="empty text"),
        *([] if longest is None else [_length_check(longest)]),
        pa.Check(lambda column: ~column.str.contains(REPLACEMENT, regex=False), error="lost characters"),
    ]


def _flat(kind: Kind, record: Record) -> dict[str, Any]:
    """The columns that the contract speaks of."""
    prompt = record["prompt"]
    contents = [message["content"] for message in prompt]
    unlike = record["meta"].get("unlike")
    row: dict[str, Any] = {
        "id": record["id"],
        "prompt": "\n".join(contents),
        "prompt.last_role": prompt[-1]["role"] if prompt else "",
        "prompt.empty_turns": len(contents) - sum(map(bool, map(str.strip, contents))),
        "meta.unlike": "null" if unlike is None else json.dumps(unlike),
    }
    answers = [text.strip() for text in answers_of(kind, record)]
    if kind == "ranking":
        row |= {
            "responses": "\n".join(record["responses"]),
            "responses.shortest": min(answers, key=len, default=""),
            "responses.longest": max(record["responses"], key=len, default=""),
            "responses.number": len(answers),
            "responses.equal": len(answers) - len(set(answers)),
        }
    else:
        row |= {name: record[name] for name in ANSWERS[kind]}
    if kind in ("pair", "probe"):
        row["label"] = record["label"]
    if kind == "probe":
        row["meta.probe"] = str(record["meta"].get("probe") or "")
    return row


def _failures(schema: pa.DataFrameSchema, frame: pd.DataFrame) -> list[tuple[int, str, str, str]]:
    """(row, field, value, reason) of everything that breaks the contract, each once."""
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
    else:
        return []
    found: dict[tuple[int, str], tuple[int, str, str, str]] = {}
    for case in cases.to_dict("records"):
        if case["index"] is None or pd.isna(case["index"]):
            # Not about a row but about the frame itself: the schema and `_flat` do not fit each other.
            raise RuntimeError(f"{case['check']} could not be applied to {case['column']}: {case['failure_case']}")
        place, reason = int(case["index"]), str(case["check"])
        # A check over several columns reports every column of the row; it is one failure, of the worse answer.
        whole_row = case["schema_context"] == "DataFrameSchema"
        field = "rejected" if whole_row else str(case["column"])
        value = frame.at[place, field] if whole_row else case["failure_case"]
        found.setdefault((place, f"{field}:{reason}"), (place, field, shorten(str(value)), reason))
    return list(found.values())
