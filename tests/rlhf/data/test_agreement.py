import math

import pytest

from rlhf.data.agreement import cohen_kappa


def test_kappa_by_hand() -> None:
    ratings = [(1, 1)] * 4 + [(1, -1)] + [(-1, 1)] * 2 + [(-1, -1)] * 3
    assert len(ratings) == 10
    # 7 of 10 agree: p_o = 0.7. The first says 1 five times, the second six times:
    # p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.2 / 0.5 = 0.4
    assert cohen_kappa(ratings) == pytest.approx(0.4)


def test_kappa_at_its_ends() -> None:
    assert cohen_kappa([(1, 1), (-1, -1), (0, 0)]) == 1.0
    assert cohen_kappa([(1, -1), (-1, 1)]) == -1.0
    assert math.isnan(cohen_kappa([(1, 1), (1, 1)]))
    with pytest.raises(ValueError, match="at least one item"):
        cohen_kappa([])
