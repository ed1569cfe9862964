"""Micro-batches of which every rank has as many, since their forward and backward passes are steps taken together."""

import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

from rlhf import distributed

T = TypeVar("T")


class MicroBatch(NamedTuple, Generic[T]):
    """What goes through the model at once."""

    rows: list[T]
    weight: float
    """Factor of its loss and of what is measured: 1, or 0 where a rank with fewer rows computes one for company."""
    final: bool
    """Whether it is the last one of the step."""


def micro_batches(rows: Sequence[T], size: int | None) -> list[MicroBatch[T]]:
    """This rank's share of a global batch, in parts.

    Shares differ by one row at most, and so may the number of parts that they fill; then the rank with fewer repeats
    its first row at the end, at weight 0.

    Args:
        rows: the global batch, the same on every rank; at least as many as ranks.
        size: rows of a part on one rank; None for the whole share.

    Returns:
        As many parts on every rank.
    """
    return parts_of(distributed.share(rows), size, most=math.ceil(len(rows) / distributed.world_size()))


def parts_of(mine: Sequence[T], size: int | None, *, most: int) -> list[MicroBatch[T]]:
    """`micro_batches` of a share that is known already.

    Args:
        mine: at least one row.
        size: rows of a part; None for all.
        most: rows of the largest share of all ranks.
    """
    size = size or most
    count = math.ceil(most / size)
    parts = [list(mine[start : start + size]) for start in range(0, len(mine), size)]
    idle = [[mine[0]]] * (count - len(parts))
    return [
        MicroBatch(part, float(place < len(parts)), place + 1 == count) for place, part in enumerate([*parts, *idle])
    ]
