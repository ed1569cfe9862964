"""`ratchet plan`: which stages would run, and why, before anything runs."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from flows.output import duration, note, show

if TYPE_CHECKING:
    from tasks.graph import PlannedStage

WORDS = {
    "run": "run",
    "maybe": "maybe",
    "restore": "restored from the run cache",
    "cached": "cached",
}


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "plan",
        help="which stages would run, and why",
        description="Say what `ratchet run` would do; nothing is changed.",
    )
    parser.add_argument("--until", metavar="STAGE", help="only this stage and what it needs")
    parser.add_argument("--force", metavar="STAGE", action="append", default=[], help="as for `ratchet run`")


def run(args: argparse.Namespace) -> int:
    """Show the plan."""
    from tasks.graph import plan
    from tasks.params_advice import advise
    from tasks.params_check import require_valid
    from tasks.settings import project_root
    from tasks.timings import read_timing

    root = project_root()
    require_valid(root)
    planned = plan(root, until=args.until, force=args.force)
    usual = {stage.name: timing.seconds if (timing := read_timing(root, stage.name)) else None for stage in planned}
    advice = advise(root)
    document = {
        "stages": [
            {
                "name": stage.name,
                "action": stage.action,
                "reasons": [_reason(reason) for reason in stage.reasons],
                "last_run_seconds": usual[stage.name],
            }
            for stage in planned
        ],
        "advice": [dataclasses.asdict(one) for one in advice],
    }
    for one in advice:
        note(f"warning: {one.sentence}")
    show(args, document, _lines(planned, usual))
    return 0


def _reason(reason: Any) -> dict[str, Any]:
    return {"kind": reason.kind, "name": reason.name, "old": reason.old, "new": reason.new, "sentence": str(reason)}


def _lines(planned: list[PlannedStage], usual: dict[str, float | None]) -> list[str]:
    width = max((len(stage.name) for stage in planned), default=0)
    lines = []
    for stage in planned:
        seconds = usual[stage.name]
        took = f" (took {duration(seconds)} the last time)" if seconds and stage.action in ("run", "maybe") else ""
        lines.append(f"{stage.name:<{width}}  {WORDS[stage.action]}{took}")
        lines += [f"{'':<{width}}    {reason}" for reason in stage.reasons]
    count = {action: sum(stage.action == action for stage in planned) for action in WORDS}
    said = [f"{number} {WORDS[action]}" for action, number in count.items() if number]
    return [*lines, f"{len(planned)} stages: {', '.join(said)}"]
