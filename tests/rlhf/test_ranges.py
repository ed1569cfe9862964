import math

import pytest

from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction


def test_good_values_pass():
    require_above_zero(a=1e-9)
    require_at_least(1, a=1, b=None)
    require_fraction(a=0.0, b=1.0)
    require_choice(("x", "y"), a="y")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require_above_zero(rate=0.0), "rate is 0.0, wanted a number above 0"),
        (lambda: require_above_zero(rate=math.nan), "rate is nan"),
        (lambda: require_above_zero(rate=math.inf), "rate is inf"),
        (lambda: require_at_least(2, rows=1), "rows is 1, wanted 2 or more"),
        (lambda: require_at_least(0, rows=math.nan), "rows is nan"),
        (lambda: require_fraction(share=1.1), "share is 1.1, wanted a number from 0 to 1"),
        (lambda: require_choice(("x", "y"), kind="z"), "kind is 'z', wanted one of x, y"),
    ],
)
def test_bad_values_are_named(check, message):
    with pytest.raises(ValueError, match=message):
        check()
