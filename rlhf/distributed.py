"""Ranks: who am I, what is my share, what is the sum over all. On one process all of these are trivial."""

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed

from rlhf.device import choose_device

T = TypeVar("T")

TIMEOUT = datetime.timedelta(minutes=10)
"""A collective that waits longer than this means a lost rank: fail, and let the retry resume from the checkpoint."""


def rank() -> int:
    """Index of this process, 0 on one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes the stage's files."""
    return rank() == 0


def start() -> None:
    """Join the process group when the launcher started several ranks; does nothing on one process or when joined."""
    if world_size() == 1 or torch.distributed.is_initialized():
        return
    device = choose_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)


def share(items: Sequence[T]) -> list[T]:
    """This rank's part of a global batch: every world_size-th item, so that parts differ by one at most."""
    return list(items[rank() :: world_size()])


def reduce_sum(values: Mapping[str, float]) -> dict[str, float]:
    """Sum of each value over all ranks; every rank must call it with the same names in the same order."""
    if world_size() == 1:
        return dict(values)
    start()
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=choose_device())
    torch.distributed.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def reduce_mean(values: Mapping[str, float]) -> dict[str, float]:
    """Plain mean of each value over all ranks; for means over items, reduce sums and counts and divide instead."""
    return {name: value / world_size() for name, value in reduce_sum(values).items()}


def any_rank(flag: bool) -> bool:
    """Whether the flag is true on at least one rank; decisions that lead to collectives must be made together."""
    return reduce_sum({"flag": float(flag)})["flag"] > 0


def barrier() -> None:
    """Wait until every rank is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def finish() -> None:
    """Leave the process group; call last, when no engine is in use any more."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
