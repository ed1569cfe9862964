"""The linear algebra of TRPO's step."""

import math

import pytest
import torch

from rlhf.trust_region import conjugate_gradient


def test_conjugate_gradient_by_hand():
    # A = diag(4, 1), b = (4, 1). First product A b = (16, 1): length = b.b / b.Ab = 17 / 65, so x = (68/65, 17/65) and
    # the residual b - Ax = (260 - 272, 65 - 17) / 65 = (-12, 48) / 65. The second iteration ends at (1, 1).
    matrix, b = torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), torch.tensor([4.0, 1.0], dtype=torch.float64)
    first = conjugate_gradient(matrix.mv, b, iterations=1)
    assert first.x.tolist() == pytest.approx([68 / 65, 17 / 65])
    assert first.residual == pytest.approx(math.hypot(12 / 65, 48 / 65) / math.sqrt(17))
    assert conjugate_gradient(matrix.mv, b, iterations=2).x.tolist() == pytest.approx([1.0, 1.0])


def test_conjugate_gradient_is_exact_after_as_many_iterations_as_unknowns():
    matrix = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = conjugate_gradient(matrix.mv, b, iterations=3)
    assert torch.allclose(found.x, torch.linalg.solve(matrix, b), atol=1e-12)
    assert found.residual < 1e-12
    assert conjugate_gradient(matrix.mv, b, iterations=2).residual > 1e-3


def test_conjugate_gradient_stops_early_when_it_is_there():
    asked = []

    def twice(vector):
        asked.append(1)
        return 2 * vector

    assert conjugate_gradient(twice, torch.tensor([1.0, 5.0]), iterations=10).x.tolist() == [0.5, 2.5]
    assert len(asked) == 1
    assert conjugate_gradient(twice, torch.zeros(2), iterations=10) == (pytest.approx(torch.zeros(2)), 0.0)
    assert len(asked) == 1


def test_conjugate_gradient_refuses_what_is_no_square_problem():
    with pytest.raises(ValueError, match=r"b has shape \(2, 1\) but must have 1 dimensions"):
        conjugate_gradient(lambda vector: vector, torch.ones(2, 1), iterations=1)
    with pytest.raises(ValueError, match=r"b has shape \(3,\) but product has \(1,\)"):
        conjugate_gradient(lambda vector: vector.sum().reshape(1), torch.ones(3), iterations=1)
    with pytest.raises(ValueError, match="iterations is 0"):
        conjugate_gradient(lambda vector: vector, torch.ones(3), iterations=0)
