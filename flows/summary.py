"""What a run leaves on the screen, as JSON, and as the artifact of the flow run: one document, three forms."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import cell_text, table
from rlhf.advice import Advice
from rlhf.errors import BadInput
from rlhf.outputs import read_jsonl
from tasks.marks import Mark, marks
from tasks.params_advice import advise
from tasks.timings import read_timing

if TYPE_CHECKING:
    from flows.outcome import Outcome

METRICS = Path("data/metrics")
SAMPLES = Path("data/samples")
EVALUATE = "evaluate"
TELLING = (
    "test.accuracy", "dev.accuracy", "accuracy", "test.perplexity", "dev.perplexity", "perplexity", "test.loss",
    "dev.loss", "reward", "kl", "loss", "accepted", "records", "rows",
)  # fmt: skip
"""Metrics that speak for a stage, best first, by the end of their dotted name."""
SHOWN_SAMPLES = 3
LONGEST_SAMPLE = 160

Document = dict[str, Any]


def collect(root: Path, outcome: "Outcome") -> Document:
    """Gather everything that is said about a run.

    Args:
        root: the project's root.
        outcome: what the flow left.
    """
    decision = outcome.decision
    document: Document = {
        "exit_code": outcome.exit_code,
        "run_id": outcome.run_id,
        "commit": outcome.commit,
        "stages": [_stage(root, outcome, name) for name in outcome.order],
        "win_rates": win_rates(root) if EVALUATE in outcome.results else {},
        "marks": [dataclasses.asdict(mark) for mark in run_marks(root, outcome)],
        "advice": [dataclasses.asdict(advice) for advice in _advice(root)],
        "published": list(outcome.published.published) if outcome.published else [],
        "waiting": outcome.published.waiting if outcome.published else outcome.publish_error,
        "gate": None,
        "champion": None,
    }
    if outcome.gate_error is not None:
        document["gate"] = {"promoted": False, "sentence": outcome.gate_error}
    if decision is not None:
        document["gate"] = {"promoted": decision.move is not None, "sentence": decision.sentence}
        document["champion"] = outcome.champion
    document["next"] = next_commands(document)
    return document


def win_rates(root: Path) -> dict[str, dict[str, float]]:
    """Return, per policy of the last evaluation, its win rates against sft on the test prompts, with intervals."""
    metrics = read_metrics(root, EVALUATE)
    test = metrics.get("test")
    found: dict[str, dict[str, float]] = {}
    for policy, values in (test if isinstance(test, Mapping) else {}).items():
        if isinstance(values, Mapping):
            shown = {key: values[key] for key in values if "_win" in key and values[key] is not None}
            if shown:
                found[policy] = shown
    return found


def run_marks(root: Path, outcome: "Outcome") -> list[Mark]:
    """Return the verdicts on the stages that are up to date after this run; of others, files would tell the past."""
    return marks({name: read_metrics(root, name) for name in outcome.results})


def read_metrics(root: Path, stage: str) -> dict[str, Any]:
    """Read a stage's metrics; empty when it has none yet."""
    try:
        found = json.loads((root / METRICS / f"{stage}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def headline(metrics: Mapping[str, Any]) -> tuple[str, float] | None:
    """Choose the one number that speaks for a stage; None when there is no number."""
    selected = metrics.get("selected")
    if isinstance(selected, str):
        numbers = dict(_flat({"": metrics.get("test", {}).get(selected, {})}))
        for name in ("gold_win_vs_sft", "judge_win_vs_sft"):
            if f".{name}" in numbers:
                return f"{selected} {name}", numbers[f".{name}"]
    numbers = dict(_flat(metrics))
    for wanted in TELLING:
        for name, value in numbers.items():
            if name == wanted or name.endswith(f".{wanted}"):
                return name, value
    return next(iter(numbers.items()), None)


def next_commands(document: Mapping[str, Any]) -> list[str]:
    """Choose three commands that make sense after this run."""
    broken = [stage["name"] for stage in document["stages"] if stage["status"] in ("failed", "stopped")]
    if broken:
        return ["ratchet run", "ratchet plan", "ratchet doctor"]
    if document["waiting"]:
        return ["ratchet doctor", "ratchet publish", "ratchet report"]
    if document["champion"] or document["win_rates"]:
        who = "policy@champion" if document["champion"] else "policy@challenger"
        return [f'ratchet chat {who} --prompt "..."', "ratchet report", "ratchet history"]
    return ["ratchet status", "ratchet report", "ratchet plan"]


def as_text(document: Mapping[str, Any]) -> str:
    """Write the document for a terminal."""
    parts = [table(("stage", "status", "seconds", "peak MB", "key metric"), _stage_rows(document))]
    rates = _rate_rows(document["win_rates"])
    if rates:
        parts.append(table(("win rate against sft", "value", "95% interval"), rates))
    if document["marks"]:
        parts.append("\n".join(mark["sentence"] for mark in document["marks"]))
    lines = [f"{stage['name']}: {stage['error']}" for stage in document["stages"] if stage["error"]]
    if document["published"]:
        lines.append(f"published: {', '.join(document['published'])}")
    if document["waiting"]:
        lines.append(f"not published yet: {document['waiting']}")
    if document["gate"]:
        lines.append(f"gate: {document['gate']['sentence']}")
    if document["champion"]:
        lines.append(f"champion: {document['champion']}")
    if lines:
        parts.append("\n".join(lines))
    parts.append("\n".join(["next:", *(f"  {command}" for command in document["next"])]))
    return "\n\n".join(parts)


def as_markdown(document: Mapping[str, Any], root: Path) -> str:
    """Write the document as the artifact of the flow run, with samples."""
    parts = [_markdown_table(("stage", "status", "seconds", "peak MB", "key metric"), _stage_rows(document))]
    rates = _rate_rows(document["win_rates"])
    if rates:
        parts += ["## Win rates", _markdown_table(("policy", "win rate", "95% interval"), rates)]
    if document["marks"]:
        parts += ["## Marks", _markdown_list(mark["sentence"] for mark in document["marks"])]
    if document["advice"]:
        parts += ["## Settings outside recommended ranges", _markdown_list(a["sentence"] for a in document["advice"])]
    if document["gate"]:
        parts += ["## Gate", document["gate"]["sentence"]]
    samples = list(_samples(root))
    if samples:
        parts += ["## Samples", _markdown_table(("stage", "step", "prompt", "response"), samples)]
    return "\n\n".join(parts) + "\n"


def _advice(root: Path) -> list[Advice]:
    """Say what the run was advised; a file that was spoilt while it ran is the next run's matter."""
    try:
        return advise(root)
    except BadInput:
        return []


def _stage(root: Path, outcome: "Outcome", name: str) -> dict[str, Any]:
    result, failure = outcome.results.get(name), outcome.failures.get(name)
    status: str
    if result is not None:
        status = result.status
    elif failure is not None:
        status = "stopped" if failure.kind == "cancelled" else "failed"
    else:
        status = "not reached"
    timing = read_timing(root, name)
    fresh = result is not None and result.status == "run"
    found = headline(read_metrics(root, name)) if result is not None else None
    return {
        "name": name,
        "status": status,
        "seconds": round(result.seconds, 1) if result is not None else None,
        "peak_mb": round(result.peak_mb) if fresh and result is not None else None,
        "last_run_seconds": round(timing.seconds, 1) if timing else None,
        "metric": {"name": found[0], "value": found[1]} if found else None,
        "error": failure.sentence if failure else None,
    }


def _stage_rows(document: Mapping[str, Any]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for stage in document["stages"]:
        metric = stage["metric"]
        said = f"{metric['name']} {cell_text(metric['value'])}" if metric else None
        rows.append((stage["name"], stage["status"], stage["seconds"], stage["peak_mb"], said))
    return rows


def _rate_rows(rates: Mapping[str, Mapping[str, float]]) -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for policy, values in rates.items():
        for by in ("gold", "judge"):
            value, low, high = (values.get(f"{by}_win_{end}") for end in ("vs_sft", "low", "high"))
            if value is not None:
                interval = f"{low:.3f} to {high:.3f}" if low is not None and high is not None else None
                rows.append((f"{policy}, by {by}", value, interval))
    return rows


def _samples(root: Path) -> Iterator[Sequence[object]]:
    """Yield the newest samples of each policy."""
    for path in sorted((root / SAMPLES).glob("*.jsonl")):
        rows = list(read_jsonl(path))
        last = max((row.get("step", 0) for row in rows), default=0)
        for row in [row for row in rows if row.get("step", 0) == last][:SHOWN_SAMPLES]:
            yield path.stem, last, _excerpt(row.get("prompt")), _excerpt(row.get("response"))


def _excerpt(value: object) -> str:
    """Shorten a text, or the last message of a prompt, to one line that a Markdown table survives."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content", "")
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= LONGEST_SAMPLE else text[: LONGEST_SAMPLE - 1] + "…"


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headers, ["---"] * len(headers), *([cell_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _flat(item, f"{name}.")
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield name, float(item)
