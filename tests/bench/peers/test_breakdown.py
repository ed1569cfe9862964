import pytest

from bench.peers.breakdown import Work, gigaflops, work_of
from bench.peers.models import Sequence, Size

SHAPE = Size(hidden=4, layers=2, heads=1, intermediate=6, vocabulary=10, prompt=(1, 2), response=(1, 2))


def test_operations_of_a_forward_pass_by_hand() -> None:
    # Weights: 2 layers of 4 * 16 + 3 * 24 = 136. Products: 2 * 272 * 5 tokens = 2720. Causal attention: each of 5
    # tokens sees half of 5 places, 2 products of 4 numbers at 2 operations each, 2 layers: 2 * 2 * 4 * 5 * 5 = 400.
    # Head: 2 * 4 * 10 * 3 = 240.
    assert gigaflops(SHAPE, Work([(5, 5, False)], [(3, False)])) == pytest.approx(3360e-9)


def test_a_step_with_gradients_costs_three_times_as_much() -> None:
    assert gigaflops(SHAPE, Work([(5, 5, True)], [(3, True)])) == pytest.approx(3 * 3360e-9)


def test_a_pair_computes_its_prompt_once() -> None:
    work = work_of([Sequence([1] * 3, [2] * 4, [3] * 5), Sequence([1] * 2, [2] * 6, [])], scored=True)
    assert work == Work([(7, 7, True), (8, 5, True), (8, 8, True)], [(15, True)])
