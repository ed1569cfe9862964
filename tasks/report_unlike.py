"""What the report shows of prompts that are unlike those of training; nothing where an evaluation had none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.report_evaluation import Document, cell, null_last, win_charts
from tasks.report_tables import LABELS

SHOWN = ("judge_win_vs_sft", "gold_win_vs_sft", "gold", "kl")
SHIFTS = {"wording": "unlike: wording only", "facts": "unlike: facts only", "both": "unlike: wording and facts"}
"""How people read the shifts of the embedded task; others keep their names."""
TITLE = "Win rate against SFT, unlike prompts"
NOTE = "Lines are 95% intervals over prompts; what is lost against the test prompts was owed to their likeness."


def unlike(evaluation: Document) -> dict[str, Any] | None:
    """Chart and table of the policies on prompts unlike those of training, beside the usual test prompts.

    Args:
        evaluation: the document; its block `unlike_shifts` splits the table by what is new about a prompt.

    Returns:
        "note", "charts", "policies" and "blocks", one for each measure with a row for each kind of prompt; None
        without such prompts.
    """
    if not evaluation.get("unlike"):
        return None
    found = null_last(evaluation["unlike"])
    kinds = {"usual test prompts": evaluation["test"], "unlike: all": found}
    for name, shifted in (evaluation.get("unlike_shifts") or {}).items():
        kinds[SHIFTS.get(name, f"unlike: {name.replace('_', ' ')}")] = shifted
    blocks = [{"measure": LABELS[measure], "rows": _rows(kinds, list(found), measure)} for measure in SHOWN]
    count = (evaluation.get("prompts") or {}).get("unlike")
    return {
        "note": "One sample each." if count is None else f"{count} prompts, one sample each.",
        "charts": win_charts("unlike-wins", TITLE, found, NOTE),
        "policies": list(found),
        "blocks": [block for block in blocks if block["rows"]],
    }


def _rows(kinds: Mapping[str, Mapping[str, Document]], policies: list[str], measure: str) -> list[dict[str, Any]]:
    """One row for each kind of prompt on which the measure is known of any policy."""
    return [
        {"prompts": kind, "cells": [cell(results.get(policy, {}), measure) for policy in policies]}
        for kind, results in kinds.items()
        if any(measure in results.get(policy, {}) for policy in policies)
    ]
