"""`ratchet lineage REF|FILE`: from a version to its data and code, or from a data file to the versions made of it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import show, table

if TYPE_CHECKING:
    from tasks.lineage import Origin

SHOWN = 8
"""Characters of a hash."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "lineage",
        help="what a version was made from, or which versions were made from a file",
        description="For a version: its commit, parameters, parent models, raw data and machine. For a file of raw "
        "data, a base model or anything that a stage made, or its .dvc pointer: the versions made from it.",
    )
    parser.add_argument(
        "what", metavar="REF|FILE", help="policy@champion, policy/3, reward-model/2; data/raw/mine.jsonl"
    )


def run(args: argparse.Namespace) -> int:
    """Trace backwards or forwards."""
    from tasks.lineage import names_version, origin_of, versions_from
    from tasks.settings import project_root

    root = project_root()
    if names_version(root, args.what):
        found = origin_of(root, args.what)
        show(args, found.document(), list(tree(found)))
        return 0
    path, present, uses = versions_from(root, Path(args.what))
    rows = [
        (use.version, ", ".join(f"@{name}" for name in use.aliases) or None, use.stage, (use.md5 or "?")[:SHOWN],
         {True: "the present bytes", False: "other bytes", None: "cannot be told"}[use.same])
        for use in uses
    ]  # fmt: skip
    head = f"{path} {present[:SHOWN] if present else '(no hash of it here)'}"
    made = table(("version", "alias", "made by", "file then", "is"), rows) if rows else "no version was made from it"
    document = {"file": path, "md5": present, "versions": [dataclasses.asdict(use) for use in uses]}
    show(args, document, [head, made])
    return 0


def tree(found: Origin) -> Iterator[str]:
    """Draw a version with everything before it; what came up already is not drawn twice."""
    from tasks.lineage import facts
    from tasks.lock_file import params_hash

    named = "".join(f" @{name}" for name in found.aliases)
    decided = f", {found.decision}" if found.decision else ""
    yield f"{found.reference}{named}: {found.stage} {found.output_md5[:SHOWN]}{decided}"
    if found.commit:
        yield f"  commit      {found.commit} ({found.tag})"
    yield f"  parameters  {params_hash(found.stages[found.stage])}"
    yield f"  computed on {facts(found.environments.get(found.stage))}"
    yield "  made from"
    yield from _below(found, found.stage, "    ", {found.stage})
    if found.commit:
        yield f"`ratchet reproduce {found.reference}` rebuilds it"
    yield from (f"note: {sentence}" for sentence in found.notes)


def _below(found: Origin, stage: str, indent: str, seen: set[str]) -> Iterator[str]:
    for path, md5 in found.sources(stage).items():
        yield f"{indent}{path} {md5[:SHOWN]}"
    # A stage's parents first: what only they have read is drawn with them.
    for name in found.parents(stage):
        entry, version = found.stages[name], found.registered.get(name)
        outs = ", ".join(
            f"{path} {md5[:SHOWN]}" for path, md5 in entry.outs.items() if path in found.stages[stage].deps
        )
        again = " (as above)" if name in seen else ""
        yield f"{indent}{name}{f' = {version}' if version else ''}{f': {outs}' if outs else ''}{again}"
        if name not in seen:
            seen.add(name)
            yield from _below(found, name, f"{indent}  ", seen)
