"""What the report shows of the alignment tax: what each policy lost of what the SFT model could do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.report_evaluation import Document
from tasks.report_samples import BASELINE
from tasks.report_tables import LABELS, show_number

MEASURES = ("perplexity", "token_accuracy", "regression", "regression_margin")


def tax(evaluation: Document) -> dict[str, Any] | None:
    """The table of measures before and after, the change in brackets.

    Args:
        evaluation: the document; its block `regression` adds a row for each fact that can be wrong.

    Returns:
        "note", "policies", the SFT model first, and "rows"; None where nothing was measured.
    """
    measured = evaluation.get("tax") or {}
    policies = sorted(measured, key=lambda name: name != BASELINE)
    regressions = evaluation.get("regression") or {}
    facts = {name: (regressions.get(name) or {}).get("facts") or {} for name in policies}
    before = facts.get(BASELINE, {})
    changed = {name: _with_changes(shares, {} if name == BASELINE else before) for name, shares in facts.items()}
    named = list(dict.fromkeys(fact for shares in facts.values() for fact in shares))
    rows = [(LABELS[name], [_cell(measured[policy], name) for policy in policies]) for name in MEASURES]
    rows += [
        (f"Regression set: {fact.replace('_', ' ')}, share", [_cell(changed[policy], fact) for policy in policies])
        for fact in named
    ]
    kept = [{"name": name, "cells": cells} for name, cells in rows if any(text != show_number(None) for text in cells)]
    if not kept:
        return None
    return {"note": _note(regressions.get(BASELINE) or {}), "policies": policies, "rows": kept}


def _with_changes(shares: Document, before: Document) -> Document:
    return {**shares, **{f"{fact}_change": share - before[fact] for fact, share in shares.items() if fact in before}}


def _cell(values: Mapping[str, Any], name: str) -> str:
    change = values.get(f"{name}_change")
    shown = show_number(values.get(name))
    return shown if change is None else f"{shown} ({change:+.3g})"


def _note(regression: Document) -> str:
    count = regression.get("records")
    if count is None:
        return ""
    kind = "minimal pairs, where one fact differs" if regression.get("facts") else "held-out pairs with a preference"
    return f"The regression set is {count} {kind}."
