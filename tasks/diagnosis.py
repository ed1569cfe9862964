"""The outcome of one check of `ratchet doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]
"""ok; warn: works, with a limit worth knowing; fail: something that is needed does not work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What was looked at, what was found, and what to do about it."""

    name: str
    """Short name of what was checked."""
    state: State
    """How it went."""
    found: str
    """What is there."""
    remedy: str = ""
    """One sentence; empty when all is well."""


def examine(name: str, check: Callable[[], Check]) -> Check:
    """Run one check; one that breaks is itself a finding, so that the others still run.

    Args:
        name: what the check is called if it cannot say so itself.
        check: looks at one thing.
    """
    try:
        return check()
    except Exception as error:
        sentence = " ".join(str(error).split()) or "no message"
        return Check(
            name=name,
            state="fail",
            found=f"the check broke: {type(error).__name__}: {sentence}",
            remedy="Solve what the message names; `ratchet doctor --debug` shows more.",
        )


def worst(checks: Iterable[Check]) -> State:
    """Return the gravest state of several checks, ok for none."""
    states = {check.state for check in checks}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"
