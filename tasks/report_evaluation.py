"""What the report shows of `data/metrics/evaluate.json`: headline, cards, charts and tables; empty without it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.report_charts import Bar, Point, frontier_chart, share_chart, win_rate_chart
from tasks.report_tables import LABELS, Tables, show_number

MEASURES = {"judge": "judge", "gold": "gold rubric"}
FRONTIERS = {
    "gold": ("KL against gold rubric", "gold, points"),
    "judge": ("KL against judge", "judge, standard deviations"),
    "reward": ("KL against reward model", "reward, standard deviations"),
}
SCORERS = {"reward_model": "Reward model", "judge": "Judge"}
FRONTIER_NOTE = "The dashed line is the best of n SFT answers by the reward model; its KL is an upper bound."
WINS_NOTE = "Lines are 95% intervals over prompts. Sft again is a second sample of SFT, where only chance decides."

Document = Mapping[str, Any]


def headline(evaluation: Document) -> str:
    """One sentence: which policy was chosen and how much better it is."""
    if not evaluation:
        return "No policy has been evaluated yet."
    selected = evaluation["selected"]
    found, count = evaluation["test"][selected], _prompts(evaluation)
    if "judge_win_vs_sft" not in found:
        return f"Only {selected} was evaluated, on {count}; there is nothing to compare it with."
    rate, low, high = _win(found, "judge")
    return (
        f"{selected.upper()} was chosen on dev prompts. By the judge it wins {rate:.0%} of {count} against SFT "
        f"(95% interval {low:.0%} to {high:.0%})."
    )


def cards(evaluation: Document) -> Tables:
    """The few numbers that one looks for first; an alarm only when there is one."""
    if not evaluation:
        return []
    found = evaluation["test"][evaluation["selected"]]
    shown = [{"label": "Method chosen on dev", "value": evaluation["selected"].upper(), "note": "by judge win rate"}]
    for measure, name in MEASURES.items():
        if f"{measure}_win_vs_sft" in found:
            rate, low, high = _win(found, measure)
            tone = "good" if low > 0.5 else "bad" if high < 0.5 else "wait"
            card = {"label": f"Test win rate, {name}", "value": f"{rate:.1%}", "tone": tone}
            shown.append({**card, "note": f"95% interval {low:.1%} to {high:.1%}"})
    shown.append({"label": "KL from SFT", "value": f"{found['kl']:.2f}", "note": "nats per response"})
    if found.get("over_optimised"):
        alarm = {"label": "Alarm", "value": "over-optimised", "tone": "bad"}
        shown.append({**alarm, "note": "reward up, judge or gold down"})
    return shown


def results(evaluation: Document, frontier: Path) -> dict[str, Any] | None:
    """Charts and the table of every policy on the test prompts.

    Args:
        evaluation: the document.
        frontier: the CSV of KL against scores; its charts are left out where it is missing.
    """
    if not evaluation:
        return None
    test = null_last(evaluation["test"])
    charts = win_charts("wins", "Win rate against SFT", test, WINS_NOTE) + _frontier_charts(frontier)
    wins = [f"{measure}_win_vs_sft" for measure in MEASURES]
    others = [name for name in dict.fromkeys(name for found in test.values() for name in found) if "_win_" not in name]
    rows = [
        {"name": LABELS.get(name, name), "cells": [cell(found, name) for found in test.values()]}
        for name in [*wins, *others]
        if any(name in found for found in test.values())
    ]
    duels = [_duel(name, found) for name, found in evaluation.get("duels", {}).items() if "judge_win" in found]
    note = f"{_prompts(evaluation).capitalize()}, one sample each."
    note += f" Head to head by the judge: {'; '.join(duels)}." if duels else ""
    return {"charts": charts, "policies": list(test), "rows": rows, "note": note}


def trust(evaluation: Document) -> dict[str, Any] | None:
    """Charts of minimal pairs and a table of agreement, for the reward model and the judge."""
    found = {key: evaluation[key] for key in SCORERS if evaluation.get(key)}
    if not found:
        return None
    charts = []
    for key, values in found.items():
        if values.get("probes"):
            title = f"{SCORERS[key]}: minimal pairs by flipped fact"
            label = "share of pairs in the right order"
            svg = share_chart(f"probes-{key}", title, values["probes"], x_label=label, chance=0.5)
            charts.append({"title": title, "svg": svg, "note": ""})
    names = [name for name in dict.fromkeys(n for values in found.values() for n in values) if name != "probes"]
    rows = [
        {"name": LABELS.get(name, name), "cells": [show_number(found.get(key, {}).get(name)) for key in SCORERS]}
        for name in names
    ]
    return {"charts": charts, "rows": rows}


def null_last(policies: Mapping[str, Document]) -> dict[str, Document]:
    """Put the null comparison last: it is there to measure the others by."""
    return dict(sorted(policies.items(), key=lambda item: item[0] == "sft_again"))


def win_charts(name: str, title: str, policies: Mapping[str, Document], note: str) -> Tables:
    """Draw the win rates of policies with their intervals.

    Args:
        name: as in `win_rate_chart`.
        title: as in `win_rate_chart`.
        policies: results by policy; those without win rates, as the baseline, get no bar.
        note: what stands below the chart.

    Returns:
        One chart, or none where there is no win rate.
    """
    bars = [
        Bar(policy, MEASURES[measure], *_win(found, measure))
        for measure in MEASURES
        for policy, found in policies.items()
        if f"{measure}_win_vs_sft" in found
    ]
    return [{"title": title, "svg": win_rate_chart(name, title, bars), "note": note}] if bars else []


def cell(found: Document, name: str) -> str:
    """Show one result of a policy, a win rate with its interval; a dash where it is not known."""
    if name.endswith("_win_vs_sft") and name in found:
        rate, low, high = _win(found, name.removesuffix("_win_vs_sft"))
        return f"{rate:.3f} ({low:.3f} to {high:.3f})"
    return show_number(found.get(name))


def _prompts(evaluation: Document) -> str:
    count = (evaluation.get("prompts") or {}).get("test")
    return "the test prompts" if count is None else f"{count} test prompts"


def _frontier_charts(path: Path) -> Tables:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    charts = []
    for measure, (title, label) in FRONTIERS.items():
        points = [Point(r["policy"], float(r["kl"]), float(r[measure])) for r in rows if r.get("kl") and r.get(measure)]
        if points:
            svg = frontier_chart(f"frontier-{measure}", title, points, y_label=label)
            charts.append({"title": title, "svg": svg, "note": FRONTIER_NOTE})
    return charts


def _win(found: Document, measure: str) -> tuple[float, float, float]:
    return found[f"{measure}_win_vs_sft"], found[f"{measure}_win_low"], found[f"{measure}_win_high"]


def _duel(name: str, found: Document) -> str:
    sides = name.replace("_vs_", " against ")
    return f"{sides} {found['judge_win']:.1%} ({found['judge_win_low']:.1%} to {found['judge_win_high']:.1%})"
