"""Shape checks name both sides."""

import pytest
import torch

from rlhf.shapes import require_rank, require_same_shape


def test_equal_shapes_pass() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(2, 3), "c": torch.zeros(2, 3, dtype=torch.bool)}
    require_same_shape(**tensors)
    with pytest.raises(ValueError, match="d has shape"):
        require_same_shape(**tensors, d=torch.zeros(3, 2))


def test_a_shape_that_would_broadcast_is_refused_and_both_are_named() -> None:
    with pytest.raises(ValueError, match=r"b has shape \(2,\) but a has \(2, 3\)"):
        require_same_shape(a=torch.zeros(2, 3), b=torch.zeros(2))


def test_rank_is_checked() -> None:
    require_rank(1, a=torch.zeros(4))
    with pytest.raises(ValueError, match=r"a has shape \(2, 3\) but must have 1 dimensions"):
        require_rank(1, a=torch.zeros(2, 3))
