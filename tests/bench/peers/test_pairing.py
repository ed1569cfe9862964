import pytest

from bench.peers.pairing import LIMITS, Row, quartiles, table


def row(**changed: object) -> Row:
    made = Row(name="one", peer="", ours="", precision="float32", limits=LIMITS["float32"])
    made.peer_seconds, made.our_seconds = [90.0, 4.0, 6.0, 9.0], [1.0, 2.0, 2.0, 2.0]
    made.control_gap = 1e-3
    for name, value in changed.items():
        setattr(made, name, value)
    return made


def test_ratios_are_of_pairs_and_leave_out_the_warm_up() -> None:
    assert row().ratios() == [2.0, 3.0, 4.5]
    assert row(warm=0).ratios() == [90.0, 2.0, 3.0, 4.5]


def test_quartiles() -> None:
    # Sorted 1 2 3 4 5: a quarter of the way from the first to the last is the second, three quarters the fourth.
    assert quartiles([3.0, 1.0, 5.0, 2.0, 4.0]) == (2.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0)


def test_equal_numbers_pass() -> None:
    assert row().failures() == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"loss_gap": 3e-5}, "losses differ by 3.0e-05"),
        ({"loss_gap": float("nan")}, "losses differ by nan"),
        ({"logprob_gap": 4e-5}, "log-probs or scores differ by 4.0e-05"),
        ({"logprob_gap": float("nan")}, "log-probs or scores differ by nan"),
        ({"control_gap": 2e-5}, "nothing is shown"),
    ],
)
def test_a_difference_beyond_rounding_fails(changed: dict[str, float], sentence: str) -> None:
    failures = row(**changed).failures()
    assert len(failures) == 1
    assert sentence in failures[0]


def test_losses_of_different_algorithms_are_not_compared() -> None:
    assert row(loss_gap=1.0, loss_compared=False).failures() == []
    assert "| - | 0e+00 |" in table([row(loss_gap=1.0, loss_compared=False)])


def test_the_table_has_the_median_of_the_pairs() -> None:
    assert "| one | 6.000 | 2.000 | 3.00 (2.50 to 3.75) | 3 |" in table([row()])
