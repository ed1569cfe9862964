"""The records of a JSON lines file as a sequence that reads each record when it is asked for.

A list of a million records takes gigabytes; here a record takes eight bytes until it is read.
"""

import hashlib
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from rlhf.outputs import parse_row, read_jsonl, require_file
from rlhf.row_views import View

Record = dict[str, Any]


class RecordFile(Sequence[Record]):
    """Records of a file that an earlier stage wrote and that nothing changes meanwhile."""

    def __init__(self, path: Path) -> None:
        """Find where the lines begin; nothing is parsed yet.

        Args:
            path: JSON lines.

        Raises:
            BadInput: no such file. A line that is no JSON object is found when it is read.
        """
        self.path = path
        require_file(path)
        lengths, blank = [], []
        with path.open("rb") as stream:
            for number, line in enumerate(stream):
                lengths.append(len(line))
                if line.isspace():
                    blank.append(number)
        ends = np.cumsum(np.array([0, *lengths], np.int64))
        self._bounds = np.stack([ends[:-1], ends[1:]], axis=1)
        self._numbers = np.delete(np.arange(len(lengths)), blank)
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | Sequence[Record]:
        """One record, or a view of some.

        Raises:
            BadInput: the line is not a JSON object.
        """
        if isinstance(place, slice):
            return View(self, np.arange(len(self))[place])
        number = int(self._numbers[place])
        start, end = self._bounds[number].tolist()
        return parse_row(os.pread(self._file, end - start, start), self.path, number + 1)

    def __iter__(self) -> Iterator[Record]:
        """All records in order, without a search for each."""
        return read_jsonl(self.path)

    def digest(self) -> str:
        """Hash of the file's bytes, in hexadecimal digits."""
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(records: Sequence[Any]) -> str | None:
    """Hash of the records of a file or of a choice of them, in hexadecimal digits; None for other sequences."""
    if isinstance(records, RecordFile):
        return records.digest()
    if isinstance(records, View) and (whole := digest_of(records.rows)) is not None:
        return hashlib.sha256(whole.encode() + records.places.tobytes()).hexdigest()
    return None
