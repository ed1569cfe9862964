"""The records of one folder and split: their lines in a file, their entries in memory."""

from collections.abc import Callable, Iterator
from itertools import compress, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlhf.data.entries import ENTRY, Entries, Old
from rlhf.outputs import atomic_writer

Choice: TypeAlias = Callable[[Entries], NDArray[np.bool_]]
"""From N entries to which of them are meant. [N]"""


class Part:
    """Records in the order in which they came, some of them dropped since."""

    def __init__(self, path: Path) -> None:
        """Begin an empty part, whose lines go to a new file."""
        self._path, self._stream = path, path.open("wb")
        self._blocks: list[Entries] = [np.empty(0, ENTRY)]
        self._keep = np.empty(0, np.bool_)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def add(self, entries: Entries, lines: list[bytes]) -> None:
        """Put records at the end."""
        self._blocks.append(entries)
        self._stream.writelines(lines)

    def count(self) -> int:
        """How many records have not been dropped."""
        return int(self._mask().sum())

    def kept(self) -> Entries:
        """Entries that have not been dropped, in order."""
        return self._all()[self._mask()]

    def lines(self) -> Iterator[bytes]:
        """The kept records, one line each."""
        self._stream.flush()
        with self._path.open("rb") as stream:
            yield from compress(stream, self._mask().tolist())

    def drop(self, choice: Choice) -> Entries:
        """Drop those kept records that are meant, and return their entries."""
        kept = self.kept()
        meant = choice(kept)
        keep = self._mask()
        keep[keep] = ~meant
        return kept[meant]

    def blocks(self, size: int, choice: Choice | None = None) -> Iterator[Old]:
        """Kept records, or those of them that are meant, a few at a time.

        Args:
            size: kept records that are looked at together.
            choice: asked once for each of them, in order; None for all.
        """
        entries, lines = self.kept(), self.lines()
        for start in range(0, len(entries), size):
            some, texts = entries[start : start + size], list(islice(lines, size))
            if choice is not None:
                meant = choice(some)
                some, texts = some[meant], list(compress(texts, meant.tolist()))
            yield Old(some, texts)

    def write(self, path: Path) -> None:
        """Write the kept records."""
        with atomic_writer(path, "wb") as stream:
            stream.writelines(self.lines())

    def _all(self) -> Entries:
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    def _mask(self) -> NDArray[np.bool_]:
        """Which of all records are kept; may be changed in place."""
        missing = len(self._all()) - len(self._keep)
        if missing:
            self._keep = np.concatenate([self._keep, np.ones(missing, np.bool_)])
        return self._keep
