"""Summaries of curves, with stretches counted by hand."""

import pytest

from rlhf.summary import final_and_best


def test_final_is_the_last_tenth_and_best_the_best_tenth():
    # Twenty rows: stretches of two. Scores rise to 10 at step 11 and fall again by one a step.
    rows = [{"step": step, "score": float(10 - abs(step - 11)), "kl": float(step)} for step in range(1, 21)]
    found = final_and_best(rows, best="score")
    assert found["final"] == {"score": 1.5, "kl": 19.5}  # steps 19 and 20 score 2 and 1
    assert found["best"] == {"score": 9.5, "step": 11}  # steps 10 and 11 score 9 and 10; 11 and 12 tie and come later


def test_a_missing_column_is_averaged_where_it_is():
    rows = [{"step": step, "score": 0.0, **({"loss": 4.0} if step == 20 else {})} for step in range(1, 21)]
    assert final_and_best(rows, best="score")["final"]["loss"] == pytest.approx(4.0)


def test_no_rows_no_summary():
    assert final_and_best([], best="score") == {}
