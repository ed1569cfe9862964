"""Telling the format of a file from its first rows, and saying why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.data.raw_files import rows
from rlhf.data.readers import READERS
from rlhf.data.records import RowError, shorten
from rlhf.errors import BadInput

SAMPLE = 100
"""Rows looked at; a few broken ones among them do no harm."""


@dataclass(frozen=True, slots=True)
class Detected:
    """A format and the reason for it."""

    format: str
    """A key of `READERS`."""
    why: str
    """Completes the sentence "read as FORMAT because ..."."""


def detect(path: Path, forced: str | None = None) -> Detected:
    """Find the reader that is the first to fit most of a file's first rows.

    Args:
        path: the file.
        forced: a format that the user names; then nothing is guessed.

    Raises:
        BadInput: the forced format is unknown, the file cannot be read at all, or no reader fits a single row.
    """
    if forced is not None:
        if forced not in READERS:
            raise BadInput(f"{path}: unknown format {forced!r}; known formats are {', '.join(READERS)}")
        return Detected(forced, "it was asked for")
    head = [row for _, row in islice(rows(path), SAMPLE)]
    sample = [row for row in head if isinstance(row, dict)]
    if not sample:
        reason = next((row.reason for row in head if isinstance(row, RowError)), "no rows")
        raise BadInput(
            f"{path}: none of the first {SAMPLE} rows is a JSON object ({reason}); wanted JSON lines or a JSON array "
            "in UTF-8"
        )
    # Each row counts for one reader only: a demonstration that lost its response looks like a prompt, and all the
    # others look like prompts, too, so that counting every fit would let the damaged row decide.
    fitting = Counter(name for row in sample if (name := _first_fit(row)) is not None)
    if not fitting:
        raise BadInput(_unknown(path, sample))
    best = max(fitting, key=lambda name: fitting[name])
    return Detected(best, f"{fitting[best]} of {len(sample)} rows have {READERS[best].shape}")


def _first_fit(row: Mapping[str, Any]) -> str | None:
    return next((name for name, reader in READERS.items() if reader.fits(row)), None)


def _unknown(path: Path, sample: Sequence[Mapping[str, Any]]) -> str:
    columns = Counter(name for row in sample for name in row)
    names = ", ".join(shorten(name) for name, _ in columns.most_common(8))
    return (
        f"{path}: has {f'the columns {names}, which no known format has' if names else 'rows without columns'}; wanted "
        "for example prompt, chosen and rejected, or prompt and response (docs/your-own-data.md has all formats: "
        f"{', '.join(READERS)}), so rename the columns"
    )
