"""Forward passes over a few rows at a time, for what does not fit into memory, or wastes padding, as one batch.

Of several ranks each calls the function as often as the others: a model whose weights are split over them answers only
when all of them ask.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.batches import Batch


def in_row_blocks(function: Callable[[Batch], Tensor], batch: Batch, rows: int) -> Tensor:
    """Apply a function to blocks of rows and put the results together again.

    All ranks call it together.

    Args:
        function: from a batch to a tensor of its rows, or of its rows and positions.
        batch: any batch. [B, T]
        rows: rows in a block.

    Returns:
        What `function` gives for the whole batch; positions cut off a block are 0. [B] or [B, T, ...]
    """
    count, width = batch.input_ids.shape
    results = [function(batch.rows(start, min(start + rows, count))) for start in range(0, count, rows)]
    for _ in range(max(distributed.gather_objects(len(results))) - len(results)):
        function(batch.rows(0, 1))
    if results[0].dim() == 1:
        return torch.cat(results)
    whole = results[0].new_zeros((count, width, *results[0].shape[2:]))
    start = 0
    for result in results:
        whole[start : start + result.shape[0], : result.shape[1]] = result
        start += result.shape[0]
    return whole
