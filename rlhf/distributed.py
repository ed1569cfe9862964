"""Ranks: who am I, what is my share, what is the sum over all. On one process all of these are trivial."""

import datetime
import os
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from rlhf.device import choose_device
from rlhf.errors import BadInput

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 600.0
"""A collective that waits longer than this means a lost rank: fail, and let the retry resume from the checkpoint."""


class _Joined:
    """How this process joined the group, for those who have to explain a failure."""

    store: Store | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S


def rank() -> int:
    """Index of this process, 0 on one process."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes the stage's files."""
    return rank() == 0


def start(timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
    """Join the process group when the launcher started several ranks; does nothing on one process or when joined.

    Args:
        timeout_s: longest that a collective waits for the other ranks, seconds.

    Raises:
        BadInput: more ranks on this machine than it has GPUs.
    """
    if world_size() == 1 or torch.distributed.is_initialized():
        return
    device = choose_device()
    if device.type == "cuda":
        refuse_too_many(_ranks_here(), torch.cuda.device_count())
        torch.cuda.set_device(device)
    timeout = datetime.timedelta(seconds=timeout_s)
    store, number, count = next(rendezvous("env://", timeout=timeout))
    _Joined.store, _Joined.timeout_s = store, timeout_s
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("ranks", store), rank=number, world_size=count, timeout=timeout,
    )  # fmt: skip


def store() -> Store | None:
    """Where the ranks met; None before `start` and on one process."""
    return _Joined.store


def timeout_s() -> float:
    """Longest that a collective waits for the other ranks, seconds."""
    return _Joined.timeout_s


def refuse_too_many(ranks: int, gpus: int) -> None:
    """Check the ranks of one machine against its GPUs.

    Raises:
        BadInput: there are fewer GPUs.
    """
    if ranks > gpus:
        raise BadInput(
            f"the launch line starts {ranks} ranks here, but {gpus} GPU(s) can be used, wanted one for each rank; "
            "lower the number of ranks, or look at CUDA_VISIBLE_DEVICES"
        )


def _ranks_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size())


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


def gather_objects(value: T) -> list[T]:
    """What each rank gave, by rank; small plain values only."""
    if world_size() == 1:
        return [value]
    start()
    found: list[T | None] = [None] * world_size()
    torch.distributed.all_gather_object(found, value)
    return [item for item in found if item is not None]


def barrier() -> None:
    """Wait until every rank is here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def finish() -> None:
    """Leave the process group; call last, when no engine is in use any more."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
