"""Finding rows of raw files by id or by a field, and writing the files again without them, in the form they had."""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.data.detect import detect
from rlhf.data.raw_files import HEAD, rows
from rlhf.data.readers import READERS
from rlhf.data.records import RowError, canonical_json
from rlhf.errors import BadInput

BOM = b"\xef\xbb\xbf"
ANSWERS = ("response", "chosen", "rejected")
"""Fields of canonical records with one answer; `responses` has several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which rows: those with one of the ids, or those with a value in a field."""

    ids: frozenset[str] = frozenset()
    field: str | None = None
    """Name in the raw row; dots lead into nested objects."""
    value: str = ""

    def matches(self, row: Mapping[str, Any], identities: set[str]) -> bool:
        """Tell whether a raw row is meant.

        Args:
            row: as it stands in the file.
            identities: its id, and those of the records that `validate` makes of it.
        """
        if self.field is None:
            return bool(self.ids & identities)
        return any(self._is_value(found) for found in _values(row, self.field.split(".")))

    def _is_value(self, found: Any) -> bool:
        if isinstance(found, str):
            return found == self.value
        return found is not None and json.dumps(found) == self.value


@dataclass(kw_only=True, slots=True)
class FoundRows:
    """Rows of one file that are meant."""

    total: int = 0
    """Rows in the file."""
    numbers: set[int] = field(default_factory=set)
    """Lines from 1, or places in a JSON array."""
    ids: set[str] = field(default_factory=set)
    unreadable: int = 0
    """Rows that are no JSON object and so cannot be matched."""
    contents: dict[str, set[str]] = field(default_factory=dict)
    """The answers by the prompt, as canonical JSON, of the records that `validate` makes of the rows."""


def find_rows(path: Path, wanted: Wanted) -> FoundRows:
    """Look through a raw file.

    Raises:
        BadInput: it cannot be read.
    """
    reader, found = _reader(path), FoundRows()
    for number, row in rows(path):
        found.total += 1
        if isinstance(row, RowError):
            found.unreadable += 1
            continue
        # Readers take a row apart, and records made without an id have a hash of their content.
        records = _records(reader, row) if wanted.field is None else []
        own = {str(row["id"])} if isinstance(row.get("id"), str | int) else set()
        if not wanted.matches(row, own | {record["id"] for record in records}):
            continue
        found.numbers.add(number)
        records = records or _records(reader, row)
        found.ids |= own or {record["id"] for record in records}
        for record in records:
            found.contents.setdefault(canonical_json(record["prompt"]), set()).update(answers_in(record))
    return found


def answers_in(record: Mapping[str, Any]) -> list[str]:
    """Return all answers of a canonical record."""
    return [*(record[name] for name in ANSWERS if name in record), *record.get("responses", ())]


def write_without(source: Path, target: Path, numbers: set[int]) -> None:
    """Write a raw file again without some rows; all other lines keep their bytes.

    A JSON array is written anew, indented as it was. A compressed file is compressed again, without a time in it, so
    that equal content is equal bytes.
    """
    with ExitStack() as stack:
        stream: Any = stack.enter_context(source.open("rb"))
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        output: Any = stack.enter_context(target.open("wb"))
        if packed:
            stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
            output = stack.enter_context(gzip.GzipFile(filename="", fileobj=output, mode="wb", mtime=0))
        head = stream.read(HEAD)
        stream.seek(0)
        if head.removeprefix(BOM).lstrip()[:1] == b"[":
            output.write(_array_without(stream.read().decode("utf-8-sig"), numbers).encode())
            return
        for number, line in enumerate(stream, start=1):
            if number not in numbers:
                output.write(line)


def _array_without(text: str, numbers: set[int]) -> str:
    items = [item for number, item in enumerate(json.loads(text), start=1) if number not in numbers]
    inside = text.lstrip()[1:]
    indent = len(inside) - len(inside.lstrip()) - 1 if inside.lstrip(" ").startswith(("\n", "\r")) else None
    return json.dumps(items, ensure_ascii=False, indent=indent) + ("\n" if text.endswith("\n") else "")


def _reader(path: Path) -> Any:
    """Return what turns the file's rows into records; None for one that only `validate.formats` tells how to read."""
    try:
        return READERS[detect(path).format]
    except BadInput:
        if next(rows(path), None) is None:
            raise
        return None


def _records(reader: Any, row: dict[str, Any]) -> list[dict[str, Any]]:
    if reader is None:
        return []
    try:
        return [record for _, record in reader.read(dict(row))]
    except RowError:  # `validate` refuses this row, so no record came of it
        return []


def _values(row: Any, path: Sequence[str]) -> Iterator[Any]:
    """Yield what lies at a path; lists on the way, or at its end, are looked into."""
    if isinstance(row, list):
        for item in row:
            yield from _values(item, path)
    elif not path:
        yield row
    elif isinstance(row, Mapping) and path[0] in row:
        yield from _values(row[path[0]], path[1:])


def parse_where(text: str) -> tuple[str, str]:
    """Split FIELD=VALUE.

    Raises:
        BadInput: it is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadInput(f"--where {text!r}: wanted FIELD=VALUE, as in --where annotator=anna or --where meta.user=17")
    return name.strip(), value
