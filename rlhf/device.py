"""Where and how exactly a stage computes: the device, the number format, and everything that must be seeded."""

import contextlib
import os
import random
from typing import Literal

import numpy
import torch

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device() -> torch.device:
    """The GPU of this process when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """Context in which forward passes run in the wanted format; weights and optimizer state stay in fp32.

    Args:
        device: where the model lies.
        precision: "float32", "bfloat16", or "auto" (bfloat16 on a GPU, float32 on a CPU, where it is no faster).

    Raises:
        ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, wanted one of {', '.join(PRECISIONS)}")
    if precision == "float32" or (precision == "auto" and device.type == "cpu"):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def make_reproducible(seed: int, *, deterministic: bool = True) -> None:
    """Seed every generator in use and choose deterministic kernels, so that one seed gives one result.

    Args:
        seed: any whole number; the same on every rank, since it also initialises weights.
        deterministic: False lets a GPU take faster kernels whose sums come in any order, and try out which are fastest;
            a CPU computes the same either way.
    """
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # cuBLAS reads this when it starts; without it the deterministic mode refuses every matrix product.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    free = not deterministic and torch.cuda.is_available()
    # Some attention backwards have no deterministic GPU kernel: warn there instead of refusing to train.
    # As torch.use_deterministic_algorithms, which also loads the compiler to tell it so.
    torch.set_deterministic_debug_mode("default" if free else "warn" if torch.cuda.is_available() else "error")
    torch.backends.cudnn.benchmark = free
    # The same flag would also fill every new tensor, which costs time and guards only against bugs elsewhere.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.allow_tf32 = False


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own: draws from it are the same whatever device the model is on."""
    return torch.Generator().manual_seed(seed)
