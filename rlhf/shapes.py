"""The check of tensor shapes at the door of every public tensor function."""

from torch import Tensor


def require_same_shape(**tensors: Tensor) -> None:
    """Refuse tensors whose shapes differ; nothing here is ever broadcast.

    A silent broadcast of [B] against [B, T] is the classic way to subtract a per-token KL from per-sequence scores.

    Args:
        **tensors: the tensors by the name that the error message shall use.

    Raises:
        ValueError: a shape differs from the first one; the message names both.
    """
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != first.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} but {first_name} has {tuple(first.shape)}")


def require_rank(rank: int, **tensors: Tensor) -> None:
    """Refuse tensors that do not have exactly `rank` dimensions.

    Args:
        rank: the number of dimensions wanted.
        **tensors: the tensors by the name that the error message shall use.

    Raises:
        ValueError: a tensor has another number of dimensions.
    """
    for name, tensor in tensors.items():
        if tensor.dim() != rank:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} but must have {rank} dimensions")
