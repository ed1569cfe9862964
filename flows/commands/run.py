"""`ratchet run`: from the data to a champion; what did not change is skipped."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.output import duration, note, show
from flows.run_lock import run_lock

if TYPE_CHECKING:
    from flows.outcome import Outcome
    from flows.server import LocalServer
    from tasks.graph import Graph, PlannedStage

CLIENT_RETRIES = "2"
"""Prefect doubles its pause after each attempt; its own five would hold a run whose server is gone for minutes."""


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "run",
        help="take the data to a champion model",
        description="Run the stages that are not up to date, publish what is new, and let the gate decide.",
    )
    parser.add_argument("--until", metavar="STAGE", help="only this stage and what it needs; the gate is not asked")
    parser.add_argument(
        "--force", metavar="STAGE", action="append", default=[], help="execute it whatever its state; may be repeated"
    )
    parser.add_argument("--no-promote", action="store_true", help="judge the challenger, but leave the champion")
    parser.add_argument("--flow", action="store_true", help="start the flow although nothing is to be done")


def run(args: argparse.Namespace) -> int:
    """Run the flow, or say at once that there is nothing to do."""
    from flows.server import LocalServer, require_named_server, server_is_needed
    from tasks.machine import require_space
    from tasks.params_advice import advise
    from tasks.params_check import require_valid
    from tasks.settings import applied_environment, project_root

    began = time.monotonic()
    root = project_root()
    require_valid(root)
    require_space(root)
    advice = advise(root)
    for one in advice:
        note(f"warning: {one.sentence}")
    with applied_environment(root), run_lock(root), ExitStack() as stack:
        server = LocalServer(root) if server_is_needed() else None
        if args.flow and server:
            stack.enter_context(server)  # its start is what takes longest: everything below goes on beside it
        graph, planned = _plan(root, args)
        if not args.flow and _nothing_to_do(root, planned):
            _close_old_runs(root, server)
            seconds = time.monotonic() - began
            document = {
                "exit_code": 0,
                "stages": [],
                "up_to_date": [stage.name for stage in planned],
                "advice": [dataclasses.asdict(one) for one in advice],
                "seconds": seconds,
            }
            show(args, document, _calm(planned, seconds))
            return 0
        if not args.flow and server:
            stack.enter_context(server)
        _require_sources(root, graph)
        if not server:
            require_named_server()
        outcome = _execute(root, args, server)
    return _report(root, args, outcome, time.monotonic() - began)


def _plan(root: Path, args: argparse.Namespace) -> tuple[Graph, list[PlannedStage]]:
    from tasks.lock_mend import plan_mended

    return plan_mended(root, until=args.until, force=args.force, say=note)


def _nothing_to_do(root: Path, planned: list[PlannedStage]) -> bool:
    from tasks.publish_ledger import pending

    return all(stage.action == "cached" and not stage.damage for stage in planned) and not pending(root)


def _close_old_runs(root: Path, server: LocalServer | None) -> None:
    """Tell Prefect of runs that were killed, which otherwise the next flow does; costs nothing where there are none."""
    from flows import flow_runs
    from flows.aftermath import put_right

    left = flow_runs.dead(root)
    if server is None and left:
        put_right(root, local=False)
    elif server is not None and any(run.server == flow_runs.LOCAL for run in left):
        with server:
            server.wait()
            os.environ["PREFECT_API_URL"] = server.api_url  # until `applied_environment` ends
            for sentence in put_right(root, local=True):
                note(sentence)


def _calm(planned: list[PlannedStage], seconds: float) -> list[str]:
    frozen = [stage.name for stage in planned if stage.reasons]
    lines = [f"nothing to do: {len(planned)} stages are up to date and everything is published ({duration(seconds)})"]
    lines += [f"{name} is frozen in dvc.yaml; `dvc unfreeze {name}` has its changes looked at again" for name in frozen]
    return [*lines, "`ratchet status` shows the champion, `ratchet run --flow` goes through the flow anyway"]


def _require_sources(root: Path, graph: Graph) -> None:
    """Refuse to train on a part of the data.

    Raises:
        BadInput: data that a .dvc file names is not there.
    """
    from rlhf.errors import BadInput

    missing = [path for path in graph.sources if not (root / path).exists()]
    if missing:
        raise BadInput(
            f"{', '.join(missing)}: missing, though {missing[0]}.dvc names it; "
            "`dvc checkout` brings it back from the cache, `dvc pull` from the remote"
        )


def _execute(root: Path, args: argparse.Namespace, server: Any) -> Outcome:
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", CLIENT_RETRIES)
    if server:
        os.environ["PREFECT_API_URL"] = server.api_url  # until `applied_environment` ends
        os.environ["RATCHET_OWN_PREFECT"] = "1"  # nobody else sees that server
    # Imported here, while the server starts: Prefect takes most of a second.
    from flows.progress import choose_display
    from flows.retrain import execute

    if server:
        server.wait()
        note(f"this run in a browser, while it lasts: {server.ui_url}")
    with choose_display(root) as display:
        if server:
            server.say = display.note
        return execute(
            root,
            until=args.until,
            force=args.force,
            promote=not args.no_promote,
            display=display,
            local_server=server is not None,
        )


def _report(root: Path, args: argparse.Namespace, outcome: Outcome, seconds: float) -> int:
    from flows.summary import as_text, collect

    document = collect(root, outcome)
    document["seconds"] = round(seconds, 1)
    show(args, document, as_text(document))
    if outcome.stopped_by is not None:
        note("stopped; `ratchet run` goes on from the checkpoints")
    elif outcome.cancelled:
        note("cancelled in Prefect; `ratchet run` goes on from the checkpoints")
    for failure in outcome.failures.values():
        if failure.kind != "cancelled":
            note(f"error: {failure.stage}: {failure.sentence}; all it said is in .ratchet/tmp/logs/{failure.stage}.log")
    return outcome.exit_code
