import math

import pytest

from rlhf.ranges import require_above_zero, require_at_least, require_choice, require_fraction


@pytest.mark.parametrize(
    ("check", "beyond"),
    [
        (lambda value: require_above_zero(a=value), (1e-9, 0.0)),
        (lambda value: require_at_least(1, a=value, b=None), (1, 0)),
        (lambda value: require_fraction(a=value), (1.0, 1.0 + 1e-9)),
        (lambda value: require_fraction(a=value), (0.0, -1e-9)),
        (lambda value: require_choice(("x", "y"), a=value), ("y", "z")),
    ],
)
def test_the_last_good_value_passes_and_the_next_does_not(check, beyond):
    good, bad = beyond
    assert check(good) is None
    with pytest.raises(ValueError, match=f"a is {bad!r}"):
        check(bad)


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
