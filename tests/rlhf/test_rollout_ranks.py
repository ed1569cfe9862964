"""Whitening over two ranks whose advantages differ: each rank gets its share of the whole batch's result."""

import pytest
import torch

from rlhf import distributed
from rlhf.rollout import whiten_globally


def test_each_rank_is_whitened_with_the_mean_and_spread_of_all(monkeypatch):
    # This rank has 1 and 3, the other has 5 and 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5. Alone, this rank's values
    # would become -1 and 1; together they are -3 / sqrt(5) and -1 / sqrt(5).
    theirs = {"sum": 5.0 + 7.0, "count": 2.0, "squares": 1.0 + 9.0}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(
        distributed, "reduce_sum", lambda values: {name: value + theirs[name] for name, value in values.items()}
    )
    mask = torch.tensor([[False, True, True]])
    whitened = whiten_globally(torch.tensor([[torch.nan, 1.0, 3.0]]), mask)
    assert whitened[0].tolist() == pytest.approx([0.0, -3 / 5**0.5, -1 / 5**0.5], abs=1e-6)
