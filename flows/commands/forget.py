"""`ratchet forget (--id ID... | --where FIELD=VALUE) --reason TEXT`: rows leave the raw data, as a new version."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from flows.errors import CommandError
from flows.output import show

if TYPE_CHECKING:
    from tasks.forget import Forgotten


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "forget",
        help="remove rows from raw data, and list the versions that were trained on them",
        description="Remove rows from data that `ratchet ingest` brought in, as a new version, and list every "
        "registered version that was trained on them.",
    )
    parser.add_argument("--as", dest="name", metavar="NAME", help="only in this data; by default in all")
    parser.add_argument("--id", dest="ids", nargs="+", metavar="ID", help="their ids, or those that validate gave them")
    parser.add_argument("--where", metavar="FIELD=VALUE", help="rows with this value; dots lead into nested fields")
    parser.add_argument("--reason", required=True, help="why; kept with the record")
    parser.add_argument("--dry-run", action="store_true", help="tell what would go, and change nothing")


def run(args: argparse.Namespace) -> int:
    """Remove the rows and say what comes next."""
    from tasks.forget import forget
    from tasks.forget_rows import Wanted, parse_where
    from tasks.settings import project_root

    if (args.ids is None) == (args.where is None):
        raise CommandError("ratchet forget: name rows by --id ID... or by --where FIELD=VALUE; one of the two")
    if args.where is not None:
        field, value = parse_where(args.where)
        wanted = Wanted(field=field, value=value)
    else:
        wanted = Wanted(ids=frozenset(args.ids))
    found = forget(project_root(), wanted, name=args.name, reason=args.reason, dry_run=args.dry_run)
    steps = _next(found)
    document = {**dataclasses.asdict(found), "next": steps}
    show(args, document, [*_lines(found), *(["", "next:", *(f"  {step}" for step in steps)] if steps else [])])
    return 0


def _lines(found: Forgotten) -> list[str]:
    verb = "would be removed" if found.dry_run else "removed"
    lines = [f"{name}: {count} row(s) {verb}, {found.left[name]} left" for name, count in found.removed.items()]
    if found.not_found:
        lines.append(f"no row has the id {', '.join(found.not_found)}")
    if found.unreadable:
        lines.append(f"{found.unreadable} row(s) are no JSON objects and stay as they are; look at them yourself")
    lines += [str(version) for version in found.versions] or ["no registered version was trained on what was found"]
    return lines


def _next(found: Forgotten) -> list[str]:
    if found.dry_run:
        return ["the same command without --dry-run removes them"]
    folders = sorted({name.split("/")[0] for name in found.removed})
    steps = [f"commit data/raw/{name}.dvc with git" for name in folders]
    steps.append("`ratchet run` trains without them")
    bad = [version.version for version in found.versions if version.verdict in ("trained", "maybe", "unknown")]
    if bad:
        steps.append(f"retire {', '.join(bad)}: promote a version that is not among them, then delete them from MLflow")
    steps.append(
        "the old bytes stay in DVC's cache and remote until nothing names them: delete the git tags of the versions "
        "above, then `dvc gc --workspace --all-tags`, with --cloud for the remote"
    )
    return steps
