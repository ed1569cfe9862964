"""Sequences that are made of others without a copy of their items: a choice of rows, and one after the other."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T", covariant=True)


class View(Sequence[T]):
    """Some rows of a sequence, in any order; eight bytes for each."""

    def __init__(self, rows: Sequence[T], places: Iterable[int]) -> None:
        """Choose rows.

        Args:
            rows: the sequence.
            places: indices into it.
        """
        self.rows = rows
        self.places = np.fromiter(places, np.int64) if not isinstance(places, np.ndarray) else places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        """One row, or a view of some."""
        return View(self.rows, self.places[place]) if isinstance(place, slice) else self.rows[int(self.places[place])]


class Joined(Sequence[T]):
    """One sequence after another."""

    def __init__(self, first: Sequence[T], second: Sequence[T]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        """One row, or a view of some."""
        if isinstance(place, slice):
            return View(self, np.arange(len(self))[place])
        own = range(len(self))[place]  # also refuses a place that is not there
        return self.first[own] if own < len(self.first) else self.second[own - len(self.first)]

    def __iter__(self) -> Iterator[T]:
        yield from self.first
        yield from self.second


def chosen(rows: Sequence[T], condition: Callable[[Any], bool]) -> View[T]:
    """The rows that meet a condition, in order."""
    return View(rows, (place for place, row in enumerate(rows) if condition(row)))
