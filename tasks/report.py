"""The report: one self-contained HTML page made from the files that the stages wrote, whatever part of them exists.

The page loads nothing and runs nothing: no script, no font, no picture from elsewhere. All texts pass through
autoescaping, since a model's answer may hold anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import BadInput
from rlhf.outputs import atomic_writer, read_jsonl
from tasks import report_evaluation
from tasks.marks import marks
from tasks.report_curves import CURVES, STAGES, charts_of, read_curve
from tasks.report_decision import read_decision
from tasks.report_samples import Group, choose_samples
from tasks.report_tables import LABELS, Tables, data_tables, parameter_sections, show_number, stage_rows
from tasks.report_tax import tax
from tasks.report_unlike import unlike
from tasks.settings import tmp_dir

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SAMPLES_EACH = 3
"""Prompts shown of each kind: best, worst, largest change, random."""


def render(root: Path) -> Path:
    """Write the report of a project.

    Args:
        root: the project's root.

    Returns:
        The page, `.ratchet/tmp/report/index.html`.

    Raises:
        BadInput: a file of the project is there but cannot be read.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = show_number
    environment.filters["label"] = _label
    environment.filters["code"] = _code
    context = collect(root)
    # Charts are the only markup that is not escaped; their texts were escaped when they were drawn.
    for chart in _charts_of(context):
        chart["svg"] = Markup(chart["svg"])
    page = environment.get_template(TEMPLATE.name).render(**context)
    path = tmp_dir(root) / "report" / "index.html"
    with atomic_writer(path) as stream:
        stream.write(page)
    return path


def collect(root: Path) -> dict[str, Any]:
    """Gather everything that the page shows; a part that is missing is None or empty."""
    metrics = {path.stem: _read_json(path) for path in sorted((root / "data/metrics").glob("*.json"))}
    evaluation = metrics.get("evaluate", {})
    decision = read_decision(root)
    return {
        "name": root.resolve().name,
        "headline": report_evaluation.headline(evaluation),
        "cards": decision.cards + report_evaluation.cards(evaluation),
        "decision": decision,
        "marks": marks(metrics),
        "results": report_evaluation.results(evaluation, root / "data/curves/frontier.csv"),
        "unlike": unlike(evaluation),
        "tax": tax(evaluation),
        "samples": _samples(root / "data/evaluation/answers.jsonl", evaluation),
        "training": _training(root / "data/curves"),
        "trust": report_evaluation.trust(evaluation),
        "data": data_tables(metrics.get("validate", {})),
        "stages": stage_rows(root),
        "parameters": parameter_sections(root / "params.yaml"),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not JSON ({error}); run the stage that writes it again") from error
    return document if isinstance(document, dict) else {}


def _label(name: str) -> str:
    return LABELS.get(name, name)


def _code(text: str) -> Markup:
    """Show what stands between backticks as code; everything is escaped."""
    from markupsafe import Markup

    parts = [
        Markup("<code>{}</code>" if index % 2 else "{}").format(part) for index, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _samples(path: Path, evaluation: Mapping[str, Any]) -> list[Group]:
    if not path.is_file() or not evaluation:
        return []
    rows = [row for row in read_jsonl(path) if row["split"] == "test"]
    return choose_samples(rows, selected=evaluation["selected"], each=SAMPLES_EACH)


def _training(folder: Path) -> Tables:
    """Charts by stage; a stage without a curve has none."""
    curves = {stage: read_curve(folder / f"{stage}.csv") for stage in STAGES}
    stages: dict[str, Tables] = {stage: [] for stage in STAGES}
    for number, spec in enumerate(CURVES):
        stages[spec.stage] += charts_of(f"curve-{number}", spec, curves[spec.stage])
    return [{"name": stage, "title": STAGES[stage], "charts": charts} for stage, charts in stages.items()]


def _charts_of(value: Any) -> Iterator[dict[str, Any]]:
    """Find every chart in the context, at any depth."""
    if isinstance(value, dict):
        if "svg" in value:
            yield value
        for inner in value.values():
            yield from _charts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _charts_of(inner)
