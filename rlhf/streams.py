"""Random numbers and prompt orders as functions of the place in a run: resuming needs no state of them."""

import hashlib

import torch


def random_source(*parts: int) -> torch.Generator:
    """A generator that belongs to a place in the run (seed, update, rank, ...): a resumed run has no state to restore.

    Args:
        *parts: whole numbers of at least 0; other parts give an unrelated stream.
    """
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def prompt_indices(count: int, *, start: int, length: int, seed: int) -> list[int]:
    """A window of an endless stream of prompts: one seeded permutation of all prompts after the other.

    The stream is a function of the seed alone, so a resumed run needs nothing but its position.

    Args:
        count: number of prompts.
        start: position of the first one wanted.
        length: how many are wanted.
        seed: seed of the stream.
    """
    wanted: list[int] = []
    while len(wanted) < length:
        lap, place = divmod(start + len(wanted), count)
        order = torch.randperm(count, generator=random_source(seed, lap)).tolist()
        wanted.extend(order[place : place + length - len(wanted)])
    return wanted
