"""`ratchet ingest FILE...` or `--model FOLDER --as NAME`: bring data or a base model into the project."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import CommandError
from flows.output import show, table

if TYPE_CHECKING:
    from tasks.ingest import DataReport, ModelReport


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "ingest",
        help="add raw data, or a base model, as a new version",
        description="Check data files or a base model, copy them into the project and have DVC track the copy.",
    )
    parser.add_argument("files", nargs="*", metavar="FILE", type=Path, help="data files or folders of them")
    parser.add_argument("--model", metavar="FOLDER", type=Path, help="a Hugging Face model folder, instead of data")
    parser.add_argument("--as", dest="name", metavar="NAME", help="what to call it in the project")
    parser.add_argument("--format", metavar="F", help="the files' format; told from their rows if not given")


def run(args: argparse.Namespace) -> int:
    """Bring it in and say what comes next."""
    from tasks.ingest import ingest_data, ingest_model
    from tasks.settings import project_root

    root = project_root()
    if (args.model is None) == (not args.files):
        raise CommandError(
            "ratchet ingest: name data files, or a base model with --model FOLDER --as NAME; one of the two"
        )
    if args.model is not None:
        if args.name is None or args.format is not None:
            raise CommandError("ratchet ingest: --model needs --as NAME, and takes no --format")
        model = ingest_model(root, args.model, name=args.name)
        step = _next_for_model(root, model)
        show(args, {"model": dataclasses.asdict(model), "next": step}, [*_model_lines(model), f"next: {step}"])
        return 0
    data = ingest_data(root, args.files, name=args.name, format=args.format)
    step = _next_for_data(root, data)
    show(args, {"data": dataclasses.asdict(data), "next": step}, [*_data_lines(data), f"next: {step}"])
    return 0


def _data_lines(report: DataReport) -> list[str]:
    place = f"data/raw/{report.name}"
    facts: list[tuple[str, object]] = [
        ("format", f"{report.format}, because {report.why}"),
        ("records", ", ".join(f"{count} of kind {kind}" for kind, count in report.rows.items())),
    ]
    if report.refused:
        facts.append(("refused", f"{report.refused} row(s), the first {report.example}; `validate` will list them"))
    facts.append(("first prompt", _shortened(str(report.sample["prompt"][-1]["content"]))))
    version = f"{place.rstrip('/')}.dvc"
    return [f"{report.status}: {place}; commit {version} with git", table(("", ""), facts, indent=2)]


def _model_lines(report: ModelReport) -> list[str]:
    place = f"data/base/{report.name}"
    facts: list[tuple[str, object]] = [("class", report.architecture), ("tensors", str(report.tensors))]
    if report.left_out:
        facts.append(("left out", ", ".join(report.left_out)))
    return [f"{report.status}: {place}; commit {place}.dvc with git", table(("", ""), facts, indent=2)]


def _next_for_data(root: Path, report: DataReport) -> str:
    from rlhf.config import read_params

    named = read_params(root / "params.yaml").get("validate", {}).get("files", [])
    if report.name in named or report.name.rstrip("/") in named:
        return "`ratchet run` (validate.files in params.yaml names it already)"
    profiles = _profiles(root, lambda values: report.name in values.get("validate", {}).get("files", []))
    line = f"set `files: [{report.name}]` under `validate:` in params.yaml, then `ratchet run`"
    return f"{profiles}, or {line}" if profiles else line


def _next_for_model(root: Path, report: ModelReport) -> str:
    profiles = _profiles(root, lambda values: values.get("sft", {}).get("base_model") == report.name)
    line = f"set `base_model: {report.name}` under `sft:` in params.yaml, then `ratchet run`"
    return f"{profiles}, or {line}" if profiles else line


def _profiles(root: Path, fits: Callable[[dict[str, Any]], bool]) -> str:
    """Name the profiles that use what was brought in, as commands."""
    from rlhf.config import read_params
    from tasks.profiles import names

    found = [name for name in names(root) if fits(read_params(root / "profiles" / f"{name}.yaml"))]
    return " or ".join(f"`ratchet use {name}`" for name in found)


def _shortened(text: str, most: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
