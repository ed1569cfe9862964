"""From a raw file to canonical rows, each with its place in the file, and to the rows that cannot be read."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rlhf.data.detect import Detected, detect
from rlhf.data.raw_files import Numbered, rows
from rlhf.data.readers import READERS
from rlhf.data.records import Kind, Record, RowError, encode, shorten
from rlhf.errors import BadInput, one_line

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """A canonical record and where it stood."""

    kind: Kind
    record: Record
    text: str
    """The record as one line of canonical JSON."""
    file: str
    line: int


class Refused(NamedTuple):
    """Why a row is not used."""

    file: str
    line: int
    field: str
    value: str
    reason: str


def read(path: Path, name: str, detected: Detected) -> Iterator[Row | Refused]:
    """Read one raw file.

    Args:
        path: the file.
        name: its name relative to the raw folder; becomes the records' `source`.
        detected: its format.

    Yields:
        Canonical rows, and a refusal for every row that is none. A raw row may give several records.

    Raises:
        BadInput: the file cannot be read, or not one of its rows has the format.
    """
    good, refused = 0, list[Refused]()
    for found in canonical(rows(path), name, detected.format):
        if isinstance(found, Row):
            good += 1
        else:
            refused.append(found)
        yield found
    if not good:
        raise useless(path, detected, refused)
    log.info("%s: read as %s because %s", name, detected.format, detected.why)


def canonical(numbered: Iterable[Numbered], name: str, format: str) -> Iterator[Row | Refused]:
    """Canonical rows of parsed ones, and a refusal for every row that is none.

    Args:
        numbered: rows with their numbers.
        name: of the file.
        format: a key of `READERS`.
    """
    reader = READERS[format]
    for number, found in numbered:
        try:
            if isinstance(found, RowError):
                raise found
            for kind, record in reader.read(found):
                record["source"] = name
                yield Row(kind, record, encode(record), name, number)
        except RowError as error:
            yield Refused(name, number, one_line(error.field), shorten(error.value), error.reason)


def useless(path: Path, detected: Detected, refused: Iterable[Refused]) -> BadInput:
    """The error for a file all of whose rows were refused."""
    reasons = Counter(f"{failure.field}: {failure.reason}" for failure in refused)
    worst, count = reasons.most_common(1)[0]
    return BadInput(
        f"{path}: none of its {reasons.total()} rows could be read as {detected.format} "
        f"({READERS[detected.format].shape}); most often ({count} rows) because of {worst}"
    )


def formats(files: list[tuple[str, Path]], forced: dict[str, str]) -> list[tuple[str, Path, Detected]]:
    """The format of every file, before any is read whole.

    Args:
        files: (name, path).
        forced: formats that the user gives, by file or folder name.

    Raises:
        BadInput: a format is given for a file that is not read, or a file has no known format.
    """
    by_name = {name: format_name for key, format_name in forced.items() for name in _meant(key, files)}
    return [(name, path, detect(path, by_name.get(name))) for name, path in files]


def _meant(key: str, files: list[tuple[str, Path]]) -> list[str]:
    """The files that a key of `validate.formats` speaks of: one by its name, or all of a folder."""
    names = [name for name, _ in files if name == key or name.startswith(f"{key.rstrip('/')}/")]
    if not names:
        raise BadInput(
            f"params.yaml: validate.formats names {key!r}, which is not among the files that are read: "
            f"{', '.join(name for name, _ in files)}"
        )
    return names
