"""`ratchet use PROFILE...`: merge named settings into params.yaml, after showing what changes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import CommandError
from flows.output import note, say, show, table

if TYPE_CHECKING:
    from tasks.profiles import Change

METHODS = "algorithms/"
"""Profiles that say which method is used, and nothing of models, data and sizes."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "use",
        help="merge a profile into params.yaml",
        description="Merge a profile into params.yaml; comments stay. `ratchet use default` restores the defaults, "
        "`ratchet use tiny algorithms/grpo` lays the second over the first.",
    )
    parser.add_argument(
        "profile", nargs="*", help="a name under profiles/ (also algorithms/NAME), or a YAML file; later ones go first"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the difference and write nothing")
    parser.add_argument("--yes", action="store_true", help="write without asking")
    parser.add_argument("--back", action="store_true", help="restore params.yaml as it was before the last `use`")


def run(args: argparse.Namespace) -> int:
    """Show the difference, then write it."""
    from tasks.profiles import changes, merge, names, requests_of_stages, waiting_files
    from tasks.settings import project_root, state_dir

    root = project_root()
    before = state_dir(root) / "params.before-use.yaml"
    if args.back == bool(args.profile):
        raise CommandError(f"ratchet use: name a profile, or --back; profiles are {', '.join(names(root))}")
    if args.back:
        if not before.is_file():
            raise CommandError("ratchet use --back: no profile has been used here yet, so there is nothing to restore")
        text = before.read_text(encoding="utf-8")
        differences, missing = changes(root / "params.yaml", text), []
    else:
        merged = merge(root, *args.profile)
        text, differences = merged.text, merged.changes
        missing = waiting_files(root, merged.params)
    written = bool(differences) and not args.dry_run and _agreed(args, differences)
    if written:
        _write(root / "params.yaml", text, before)
    sections = {change.key.split(".")[0] for change in differences}
    stages = [stage for stage in requests_of_stages(root) if sections & {stage, "seed"}]
    document = {
        "profile": " ".join(args.profile) or None,
        "written": written,
        "changes": [{"key": c.key, "old": c.old, "new": c.new} for c in differences],
        "stages": stages,
        "missing": missing,
    }
    show(args, document, _lines(args, differences, written, stages, missing))
    return 0


def _agreed(args: argparse.Namespace, differences: tuple[Change, ...]) -> bool:
    """Ask at a terminal; elsewhere the command itself is the answer."""
    if args.yes or args.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    say(_difference(differences))
    sys.stdout.write(f"write {len(differences)} change(s) to params.yaml? [Y/n] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("", "y", "yes")


def _write(params: Path, text: str, before: Path) -> None:
    from rlhf.outputs import atomic_writer

    if params.is_file():
        with atomic_writer(before) as stream:
            stream.write(params.read_text(encoding="utf-8", errors="replace"))
    with atomic_writer(params) as stream:
        stream.write(text)


def _difference(differences: tuple[Change, ...]) -> str:
    return table(("setting", "now", "", "becomes"), [(c.key, repr(c.old), "->", repr(c.new)) for c in differences])


def _lines(
    args: argparse.Namespace, differences: tuple[Change, ...], written: bool, stages: list[str], missing: list[str]
) -> list[str]:
    """What a person reads after the command."""
    if not differences:
        lines = ["params.yaml already has these settings; nothing to change"]
    else:
        lines = [_difference(differences), ""]
        state = "written to params.yaml" if written else "not written"
        lines.append(f"{len(differences)} change(s) {state}; they touch {', '.join(stages)}")
    lines += [f"missing: {line}" for line in missing]
    if differences and len(args.profile) == 1 and args.profile[0].startswith(METHODS):
        name = args.profile[0]
        lines.append(f"{name} stands on the defaults; `ratchet use PROFILE {name}` lays it over another profile")
    if written:
        lines.append("next: `ratchet plan` shows what would run; `ratchet use --back` undoes this")
    elif differences and args.dry_run:
        note("--dry-run: nothing was written")
    return lines
