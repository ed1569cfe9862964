"""The table of what alignment cost."""

from copy import deepcopy

from tasks.report_tax import tax
from tests.tasks.report_project import EVALUATION, FULL

DASH = "\N{EN DASH}"


def test_before_and_after_with_the_change_in_brackets() -> None:
    found = tax(FULL)
    assert found is not None
    assert found["policies"] == ["sft", "dpo", "ppo"]
    rows = {row["name"]: row["cells"] for row in found["rows"]}
    assert rows["Perplexity on held-out demonstrations"] == ["1.5", "1.5 (+0)", "1.75 (+0.25)"]
    assert rows["Token accuracy on held-out demonstrations, share"] == ["0.875", DASH, "0.75 (-0.125)"]
    assert rows["Regression set: right answer likelier, share"] == ["0.75", DASH, "0.5 (-0.25)"]
    assert found["note"] == "The regression set is 40 minimal pairs, where one fact differs."


def test_facts_are_compared_with_those_of_sft() -> None:
    found = tax(FULL)
    assert found is not None
    rows = {row["name"]: row["cells"] for row in found["rows"]}
    assert rows["Regression set: order, share"] == ["0.5", DASH, "0.75 (+0.25)"]
    assert rows["Regression set: sla, share"] == ["1", DASH, "0.25 (-0.75)"]


def test_held_out_pairs_are_called_so() -> None:
    pairs = deepcopy(FULL)
    for values in pairs["regression"].values():
        values.pop("facts", None)
    found = tax(pairs)
    assert found is not None
    assert found["note"] == "The regression set is 40 held-out pairs with a preference."
    assert len(found["rows"]) == 4


def test_what_was_not_measured_has_no_row_and_perhaps_no_table() -> None:
    found = tax({"tax": {"sft": {"perplexity": 1.5}}})
    assert found == {
        "note": "", "policies": ["sft"], "rows": [{"name": "Perplexity on held-out demonstrations", "cells": ["1.5"]}]
    }  # fmt: skip
    assert tax({"tax": {"sft": {}, "ppo": {}}}) is None
    assert tax(EVALUATION) is None
    assert tax({}) is None
