"""`ratchet gate [VERSION]`: is it better than the champion, and why."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.output import show, table

if TYPE_CHECKING:
    from tasks.gate_rules import Verdict


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "gate",
        help="compare the challenger with the champion",
        description="Judge a version against the champion on the same test prompts, by the rules in "
        "mlflow/registry.yaml. Nothing is moved. Exit code 1 when the gate says no.",
    )
    parser.add_argument("version", nargs="?", metavar="VERSION", help="3, v3 or @challenger (the default)")


def run(args: argparse.Namespace) -> int:
    """Judge and show every rule."""
    from tasks.gate import judge_challenger
    from tasks.settings import project_root

    verdict = judge_challenger(project_root(), args.version)
    show(args, asdict(verdict), verdict_lines(verdict))
    return 0 if verdict.promote else 1


def verdict_lines(verdict: Verdict) -> list[str]:
    """Lay a verdict out for people."""
    head = "" if verdict.outcome == "undecided" else "yes: " if verdict.promote else "no: "
    lines = [head + verdict.sentence]
    if verdict.reasons:
        rows = [
            (
                rule.name,
                rule.value,
                "-" if rule.low is None else f"{rule.low:.3f} to {rule.high:.3f}",
                "-" if rule.coverage is None else f"{100 * rule.coverage:.4g}%",
                f"{rule.bound} {rule.direction} {rule.threshold:g}",
                "ok" if rule.verdict == "holds" else rule.verdict,
            )
            for rule in verdict.reasons
        ]
        lines.append(table(["rule", "value", "interval", "coverage", "wanted", "result"], rows))
        lines += [f"{rule.name}: {rule.detail}" for rule in verdict.reasons if rule.p_value is not None]
    if verdict.slices:
        shown = [
            (
                one.field,
                one.value,
                one.prompts,
                one.rate,
                f"{one.low:.3f} to {one.high:.3f}",
                "ok" if one.ok else "fails",
            )
            for one in verdict.slices
        ]
        lines.append(table(["slice", "", "prompts", "win rate", "interval", "result"], shown))
    if verdict.look is not None and verdict.error is not None:
        lines.append(
            f"look {verdict.look} at this {'champion' if verdict.champion else 'place'}: an equal challenger passes "
            f"with a chance of at most {100 * verdict.error:.2g}%"
        )
    if not verdict.promote and verdict.mode != "enforce":
        lines.append(
            f"the gate is in mode {verdict.mode}, so `ratchet promote {verdict.challenger}` would do it anyway"
        )
    return lines
