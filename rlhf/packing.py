"""Padding-free batches in which no token is computed twice.

The hidden state of a token depends on the token and what stands before it, so two rows that begin alike share the
states of their common beginning: the prompt of a pair's two answers, of a group of samples, of an answer and its
altered copy. A batch is therefore a forest of prefixes. Its nodes, each with the depth that is its position, are laid
out in one row for everything that works on tokens one by one. Attention alone needs whole sequences: it sees them in
blocks of rows of like length, through an index from places in the blocks to nodes.

Batches differ in their number of nodes, and matrix libraries compile a kernel for each new number, so a few nodes that
nothing reads fill it up to one of sixteen sizes between two powers of two.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rlhf.shapes import require_rank, require_same_shape

HASH_SEED = 20260727
SHORTEST_IN_BLOCK = 0.85
"""A row joins a block of attention when it is at least this share of the block's width: less padding, more blocks."""
MOST_BLOCKS = 6
SIZES_PER_OCTAVE = 16


class Packed(NamedTuple):
    """The nodes of a right-padded batch of B rows and T places: N in the order of their first place, then filling."""

    input_ids: Tensor
    """Token of each node, 0 in the filling. [1, M] int64, M >= N"""
    position_ids: Tensor
    """Depth of each node, from 0. [1, M] int64"""
    nodes: Tensor
    """Node that stands at each place of the batch; 0 at padding. [B, T] int64"""
    places: Tensor
    """Node at each place of the blocks, end to end; 0 at padding, which no real token's attention reads. [P] int64"""
    blocks: tuple[tuple[int, int], ...]
    """Rows and width of each block; the products sum to P."""
    homes: Tensor
    """First place of each node. [N] int64"""
    repeats: Tensor | None
    """Places, padding aside, whose node is at home elsewhere; None when there are none. [R] int64"""
    repeated: Tensor | None
    """Nodes at those places. [R] int64"""


def round_up(count: int) -> int:
    """The next of the sizes that batches of nodes and rows come in, at most an eighth above `count`."""
    step = max(SIZES_PER_OCTAVE, (1 << (count.bit_length() - 1)) // SIZES_PER_OCTAVE)
    return -(-count // step) * step


def pack(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """Find the nodes of a batch.

    Beginnings are compared by a 64-bit sum of products of tokens with fixed random numbers, one per place; what it
    pairs is then compared token by token, so a collision is an error and never a wrong result.

    Args:
        input_ids: token ids. [B, T] int64
        attention_mask: True at real tokens, which come first in every row. [B, T] bool

    Returns:
        The batch without padding and repetition.

    Raises:
        ValueError: shapes differ, or a row has padding before a token.
    """
    require_rank(2, input_ids=input_ids)
    require_same_shape(input_ids=input_ids, attention_mask=attention_mask)
    if not bool(attention_mask[:, 0].all()) or bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
        raise ValueError("pack: a row has padding before a token; wanted right-padded rows, as collate makes them")
    width, flat = input_ids.shape[1], input_ids.reshape(-1)
    real = attention_mask.reshape(-1).nonzero().squeeze(1)
    first = _first_of_kind(_prefix_hashes(input_ids).view(-1).index_select(0, real))
    own = first == torch.arange(len(real), device=flat.device)
    nodes = torch.zeros_like(flat)
    nodes[real] = (own.cumsum(0) - 1).index_select(0, first)
    homes, repeats = real[own], real[~own]
    _check_repeats(repeats, homes, nodes, flat, width)
    table = nodes.view_as(input_ids)
    places, blocks, starts = _blocks(table, attention_mask.sum(dim=1).tolist())
    starts = starts.to(flat.device)

    def moved(place: Tensor) -> Tensor:
        return starts.index_select(0, place // width) + place % width

    def filled(values: Tensor) -> Tensor:
        return functional.pad(values, (0, round_up(len(homes)) - len(homes))).unsqueeze(0)

    repeated = len(repeats) > 0
    return Packed(
        input_ids=filled(flat.index_select(0, homes)), position_ids=filled(homes % width), nodes=table,
        places=places, blocks=blocks, homes=moved(homes), repeats=moved(repeats) if repeated else None,
        repeated=nodes.index_select(0, repeats) if repeated else None,
    )  # fmt: skip


def _prefix_hashes(input_ids: Tensor) -> Tensor:
    """A number for each place that is a function of the tokens up to it and of their number. [B, T] int64."""
    source = torch.Generator().manual_seed(HASH_SEED)
    numbers = torch.randint(-(2**63), 2**63 - 1, (2, input_ids.shape[1]), generator=source).to(input_ids.device)
    return ((input_ids + 1) * numbers[0]).cumsum(dim=1) + numbers[1]


def _first_of_kind(values: Tensor) -> Tensor:
    """Index of the first element that equals each element. [N] int64."""
    _, kind = torch.unique(values, return_inverse=True)
    order = torch.arange(len(values), device=values.device)
    return torch.full_like(order, len(values)).scatter_reduce(0, kind, order, "amin").index_select(0, kind)


def _blocks(nodes: Tensor, lengths: Sequence[int]) -> tuple[Tensor, tuple[tuple[int, int], ...], Tensor]:
    """Rows of like length together: node at each place, shapes of the blocks, and the place where each row begins."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    groups: list[list[int]] = []
    for row in order:
        many = len(groups) == MOST_BLOCKS or nodes.device.type != "cpu"
        if groups and (many or lengths[row] >= SHORTEST_IN_BLOCK * lengths[groups[-1][0]]):
            groups[-1].append(row)
        else:
            groups.append([row])
    places, blocks, starts, start = [], [], [0] * len(lengths), 0
    for rows in groups:
        width = lengths[rows[0]]
        places.append(nodes[torch.tensor(rows, device=nodes.device), :width].reshape(-1))
        blocks.append((len(rows), width))
        for number, row in enumerate(rows):
            starts[row] = start + number * width
        start += len(rows) * width
    return torch.cat(places), tuple(blocks), torch.tensor(starts)


def _check_repeats(repeats: Tensor, homes: Tensor, nodes: Tensor, ids: Tensor, width: int) -> None:
    """A repeated place holds its node's token, at its node's depth, behind its node's parent."""
    home = homes.index_select(0, nodes.index_select(0, repeats))
    same = (ids.index_select(0, repeats) == ids.index_select(0, home)) & (repeats % width == home % width)
    parent, home_parent = (nodes.index_select(0, (place - 1).clamp(min=0)) for place in (repeats, home))
    if not bool((same & ((parent == home_parent) | (repeats % width == 0))).all()):
        raise ValueError("pack: two different beginnings have the same hash; change HASH_SEED")
