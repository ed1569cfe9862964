"""`ratchet reproduce REF`: rebuild a registered version from its commit and raw data, and compare every hash."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import note, show, table

if TYPE_CHECKING:
    from tasks.reproduce import Rebuilt

SHOWN = 12
"""Characters of a hash."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "reproduce",
        help="rebuild a registered version from raw data and compare every hash",
        description="Make a work tree at the version's commit, run its stages there from the raw data, with nothing "
        "else from the cache, and compare the hash of every output with the recorded one. Exit code 1 when one "
        "differs. Interrupted, the same command goes on where it was.",
    )
    parser.add_argument("reference", metavar="REF", help="policy@champion, policy/3, reward-model/2, ratchet/policy/v3")
    parser.add_argument("--from", dest="start", metavar="STAGE", help="take what is before it from cache or remote")
    parser.add_argument("--keep", action="store_true", help="leave the work tree in any case")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="make the work tree there")


def run(args: argparse.Namespace) -> int:
    """Rebuild; exit code 0 when all is equal."""
    from tasks.reproduce import reproduce
    from tasks.settings import project_root

    found = reproduce(
        project_root(), args.reference, start=args.start, keep=args.keep, folder=args.folder, on_line=note
    )
    show(args, found.document(), lines(found))
    return 0 if found.first_difference is None else 1


def lines(found: Rebuilt) -> list[str]:
    """Write the tables and the verdict."""
    from tasks.reproduce import same_everywhere

    rows = [
        (row.stage, row.output, row.recorded[:SHOWN], (row.rebuilt or "absent")[:SHOWN], row.equal)
        for row in found.rows
    ]
    text = [*(f"note: {sentence}" for sentence in found.notes)]
    text.append(table(("stage", "output", "recorded", "rebuilt", "equal"), rows))
    gathered = same_everywhere(found.environment)
    machine = [(name, old, new, ", ".join(stages)) for (name, old, new), stages in gathered.items()]
    if machine:
        text += ["", "computed on", table(("what", "recorded", "here", "stages"), machine)]
    if found.pins:
        pins = [(name, pinned, installed) for name, (pinned, installed) in found.pins.items()]
        text += ["", "packages", table(("package", "pinned", "installed"), pins)]
    if found.unknown:
        text.append(f"what {', '.join(found.unknown)} was computed on is not known on both sides")
    total = sum(found.seconds.values())
    if found.first_difference is None:
        text += ["", f"{found.reference} is rebuilt bit for bit: {len(rows)} outputs are equal ({total:.0f} s)"]
    else:
        text += ["", f"{found.reference} differs: the first stage with another output is {found.first_difference}"]
        if found.left_out:
            text.append(f"not computed, since they read what differs: {', '.join(found.left_out)}")
        if not machine and not found.pins and not found.unknown:
            text.append("processor, threads and libraries are those that were recorded")
    if found.kept:
        text.append(f"the work tree is kept: {found.folder} (`git worktree remove --force` takes it away)")
    return text
