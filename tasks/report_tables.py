"""Tables of the report: names and numbers as people read them, data statistics, stages and parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config import read_params
from tasks.lock_file import read_lock
from tasks.timings import read_timing

WIDEST = 7
"""Most columns of a table; a wider group is shown as one line per number."""

LABELS = {
    "sft_again": "sft again",
    "judge_win_vs_sft": "Win rate against SFT, judge",
    "gold_win_vs_sft": "Win rate against SFT, gold rubric",
    "judge": "Judge score, standard deviations",
    "reward": "Reward-model score, standard deviations",
    "gold": "Gold rubric, points",
    "kl": "KL from SFT, nats per response",
    "length_tokens": "Length, tokens",
    "end_rate": "Share of answers that end",
    "repetition": "Repeated word 4-grams, share",
    "perplexity": "Perplexity on held-out demonstrations",
    "token_accuracy": "Token accuracy on held-out demonstrations, share",
    "regression": "Regression set: right answer likelier, share",
    "regression_margin": "Regression set: log-probability of right minus wrong, nats",
    "over_optimised": "Over-optimised (1 = reward up, judge or gold down)",
    "action_ok": "Right remedy, share",
    "order_ok": "Right order number, share",
    "name_ok": "Right name, share",
    "item_ok": "Right item, share",
    "sla_ok": "Right waiting time, share",
    "empathy": "Apologies per answer",
    "filler": "Filler sentences per answer",
    "promise": "Promises per answer",
    "rude": "Rude sentences per answer",
    "malformed": "Malformed sentences per answer",
    "pairs": "Pairs",
    "accuracy": "Accuracy against annotators",
    "accuracy_gold": "Accuracy against the rubric's order",
    "calibration_error": "Expected calibration error",
    "correlation_gold": "Correlation with the rubric, SFT answers",
}
"""What people read instead of the names of metrics."""

Tables = list[dict[str, Any]]


def show_number(value: object) -> str:
    """Write a number for people: four significant digits, thousands kept apart, a dash for nothing."""
    if isinstance(value, (str, bool)):
        return str(value)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "\N{EN DASH}"
    if value == int(value):
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.4g}" if abs(value) < 100 else f"{value:.1f}"


def data_tables(validation: Mapping[str, Any]) -> Tables:
    """Lay out the validation's figures, whatever their names.

    Args:
        validation: nested figures; a group whose entries are groups of numbers becomes a table with columns.

    Returns:
        Tables with a title, columns (none for plain lists) and rows of shown cells; empty groups are left out.
    """
    loose = {title: figure for title, figure in validation.items() if not isinstance(figure, Mapping)}
    groups = {title: group for title, group in validation.items() if isinstance(group, Mapping) and group}
    tables = [_list_table("totals", loose)] if loose else []
    for title, group in groups.items():
        table = _grid_table(title, group)
        tables.append(_list_table(title, group) if table is None else table)
    return tables


def stage_rows(root: Path) -> Tables:
    """Every stage of dvc.yaml with its last cost on this machine and the hash of its first output."""
    if not (root / "dvc.yaml").is_file():
        return []
    lock, rows = read_lock(root), []
    for name, stage in (read_params(root / "dvc.yaml").get("stages") or {}).items():
        timing, locked = read_timing(root, name), lock.get(name)
        outs = dict(locked.outs) if locked else {}
        output = outs.get(f"data/models/{name}") or next(iter(outs.values()), None)
        rows.append(
            {
                "name": name,
                "what": stage.get("desc", "") if isinstance(stage, Mapping) else "",
                "seconds": timing.seconds if timing else None,
                "peak_mb": timing.peak_mb if timing else None,
                "output": output[:10] if output else None,
            }
        )
    return rows


def parameter_sections(path: Path) -> Tables:
    """The parameters by section, values as JSON; those outside any section come first."""
    if not path.is_file():
        return []
    params = read_params(path)
    loose = [(name, json.dumps(value)) for name, value in params.items() if not isinstance(value, Mapping)]
    sections = [{"name": "all stages", "entries": loose}] if loose else []
    for name, group in params.items():
        if isinstance(group, Mapping):
            entries = [(".".join(keys), json.dumps(value, ensure_ascii=False)) for keys, value in _flat(group)]
            sections.append({"name": name, "entries": entries})
    return sections


def _list_table(title: str, group: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {"name": _words(" / ".join(keys)), "cells": [", ".join(map(str, v)) if isinstance(v, list) else show_number(v)]}
        for keys, v in _flat(group)
    ]
    return {"title": _words(title), "columns": [], "rows": rows}


def _grid_table(title: str, group: Mapping[str, Any]) -> dict[str, Any] | None:
    """A table with columns; None when the entries are not all groups of plain figures, or too wide."""
    if not all(isinstance(entry, Mapping) for entry in group.values()):
        return None
    columns = list(dict.fromkeys(name for entry in group.values() for name in entry))
    nested = any(isinstance(figure, Mapping) for entry in group.values() for figure in entry.values())
    if nested or len(columns) > WIDEST:
        return None
    rows = [
        {"name": _words(name), "cells": [show_number(entry.get(column)) for column in columns]}
        for name, entry in group.items()
    ]
    return {"title": _words(title), "columns": [_words(column) for column in columns], "rows": rows}


def _flat(group: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*above, str(name)))
        else:
            yield (*above, str(name)), value


def _words(name: object) -> str:
    return str(name).replace("_", " ")
