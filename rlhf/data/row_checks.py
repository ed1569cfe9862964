"""From a block of raw rows to records that the ledger can take in: everything that needs no other block."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rlhf.data.contracts import Limits, check
from rlhf.data.entries import Block, Placement, prepare
from rlhf.data.intake import Refused, Row, canonical
from rlhf.data.raw_files import Unread, parsed, unread

BLOCK = 5000
"""Rows that go through the contracts together."""


class Checked(NamedTuple):
    """What became of a block of raw rows."""

    rows: int
    """Raw rows."""
    good: int
    """Records that could be read, whether or not they keep the contract."""
    refused: list[Refused]
    """Rows that could not be read, then records that break the contract, each in order."""
    block: Block
    """The records that are left."""


def unread_blocks(path: Path) -> Iterator[list[Unread]]:
    """The raw rows of a file, a few thousand at a time.

    Raises:
        BadInput: the file cannot be read.
    """
    stream = unread(path)
    while some := list(islice(stream, BLOCK)):
        yield some


def checked_rows(
    some: Sequence[Unread], *, name: str, format: str, file: int, limits: Limits, placement: Placement
) -> Checked:
    """Read and check a block of raw rows.

    Args:
        some: the rows.
        name: of their file.
        format: of the file.
        file: number of the file in the ledger.
        limits: sizes that a record may have.
        placement: where prompts go.
    """
    found = list(canonical(parsed(some), name, format))
    rows = [row for row in found if isinstance(row, Row)]
    kept, broken = check(rows, limits)
    unreadable = [failure for failure in found if isinstance(failure, Refused)]
    return Checked(len(some), len(rows), [*unreadable, *broken], prepare(kept, placement, file=file))
