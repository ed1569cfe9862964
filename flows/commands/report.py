"""`ratchet report`: one self-contained HTML page about data, training, evaluation and decision."""

from __future__ import annotations

import argparse
from typing import Any

from flows.output import note, show


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "report",
        help="write one self-contained HTML page",
        description="Write a page with curves, KL against reward, win rates, data statistics, answers before and after "
        "training, and the gate's decision. It needs no network, and shows what there is when stages are missing.",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it lies."""
    from tasks.report import render
    from tasks.settings import applied_environment, project_root

    root = project_root()
    with applied_environment(root):
        path = render(root)
    if args.open:
        import webbrowser

        if not webbrowser.open(path.as_uri()):
            note(f"no browser was found; open {path.as_uri()} in one")
    show(args, {"report": path}, str(path))
    return 0
