"""A set of millions of 64-bit hashes: eight bytes for each of them, and whole blocks are asked about at once."""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


class KeySet:
    """Hashes in a few sorted arrays, each at least twice as long as the next one.

    A Python set would take about ninety bytes for a hash, which is more than most of the records that it stands for.
    """

    def __init__(self) -> None:
        self._sorted: list[Keys] = []

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Where a hash is in the set. [N]."""
        found = np.zeros(len(keys), dtype=np.bool_)
        for known in self._sorted:
            places = np.searchsorted(known, keys)
            places[places == len(known)] = 0
            found |= known[places] == keys
        return found

    def add(self, keys: Keys) -> NDArray[np.bool_]:
        """Put hashes in, as if one after the other.

        Args:
            keys: hashes, some perhaps equal. [N]

        Returns:
            True where a hash was not there before: not in the set, and not earlier in `keys`. [N]
        """
        fresh = np.zeros(len(keys), dtype=np.bool_)
        fresh[np.unique(keys, return_index=True)[1]] = True
        fresh &= ~self.holds(keys)
        if fresh.any():
            self._sorted.append(np.sort(keys[fresh]))
        while len(self._sorted) > 1 and len(self._sorted[-2]) < 2 * len(self._sorted[-1]):
            last = self._sorted.pop()
            # A stable sort of two runs that are sorted already merges them.
            self._sorted[-1] = np.sort(np.concatenate([self._sorted[-1], last]), kind="stable")
        return fresh

    def remove(self, keys: Keys) -> None:
        """Take hashes out."""
        left = [known[~np.isin(known, keys)] for known in self._sorted]
        self._sorted = [known for known in left if len(known)]
