"""The decision about a challenger: what the gate made of it, and a person's yes where one is wanted.

Where a person decides, the run ends with a pending decision and nothing waits for the answer: neither a process nor
a device. It is given by `ratchet promote`, or by the flow `promote` in Prefect's page.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlhf.errors import BadInput
from rlhf.outputs import atomic_writer
from tasks.history import Move, now
from tasks.registry import LONGEST_SENTENCE, VERDICT, champion, promote, require_guard, version
from tasks.registry_config import load_registry_config
from tasks.registry_lookup import DECISION, Version, opened
from tasks.settings import state_dir

if TYPE_CHECKING:
    from tasks.gate_rules import Verdict

FILE = "decision.json"
Decided = Literal["pending", "refused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """A challenger that waits for a person."""

    version: str
    """As one names it to a command."""
    since: str
    """ISO 8601, UTC."""
    sentence: str
    """What the gate says."""


def record_decision(root: Path, contender: Version, decided: Decided, verdict: Verdict | None) -> None:
    """Put onto the version what was decided, and keep the whole verdict here.

    Args:
        root: the project's root.
        contender: the challenger.
        decided: "pending" where a person is to say; "refused" by the gate.
        verdict: None where the gate is off.
    """
    sentence = verdict.sentence if verdict else "the gate is off"
    with opened(root) as (client, _):
        waiting = client.search_model_versions(f"name = '{contender.model}' and tags.`{DECISION}` = 'pending'")
        for other in waiting:
            if str(other.version) != contender.version:
                client.set_model_version_tag(contender.model, str(other.version), DECISION, "superseded")
        client.set_model_version_tag(contender.model, contender.version, VERDICT, sentence[:LONGEST_SENTENCE])
        client.set_model_version_tag(contender.model, contender.version, DECISION, decided)
    document = {"when": now(), "version": contender.reference, "decided": decided, "sentence": sentence}
    with atomic_writer(state_dir(root) / FILE) as stream:
        json.dump({**document, "verdict": asdict(verdict) if verdict else None}, stream, indent=1)


def pending(root: Path, reference: str | None, decision: str) -> Pending | None:
    """Return the decision that waits for a person.

    Args:
        root: the project's root.
        reference: the challenger, None when there is none.
        decision: the challenger's tag, which is what counts; this folder's file only knows more.
    """
    if reference is None or decision != "pending":
        return None
    try:
        found: dict[str, Any] = json.loads((state_dir(root) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or found.get("version") != reference:  # judged on another machine
        return Pending(version=reference, since="", sentence=f"`ratchet gate {reference}` says what speaks for it")
    return Pending(version=reference, since=str(found.get("when")), sentence=str(found.get("sentence")))


def approve(
    root: Path, number: str, *, reason: str, override: bool = False, say: Callable[[str], None] = lambda _: None
) -> Move:
    """Ask the gate about a version and make it the champion: what a person's yes does.

    Args:
        root: the project's root.
        number: as in `tasks.registry.version`.
        reason: why, for the history.
        override: go against the gate's verdict.
        say: told the gate's verdict when the version goes on.

    Returns:
        The move as recorded.

    Raises:
        GateRefused: the gate is in force and says no, or could not judge.
        ChampionMoved: the champion changed while the gate was comparing.
        NoLock: nothing guards the champion.
        BadInput: no such version, no reason, already champion, weights gone, or nothing to judge it by.
    """
    from tasks.gate import evidence_of, judge_challenger

    if not reason.strip():
        raise BadInput("promote: the reason is empty, wanted a sentence for the history")
    require_guard(root)  # before the gate looks, which spends some of its allowance
    asked, holder, config = version(root, number), champion(root), load_registry_config(root)
    chosen, mode = asked.version, config.gate.mode
    if asked.model != config.policy:
        raise BadInput(f"promote: {asked.reference} is no policy; only policies become champion")
    if holder is not None and holder.reference == asked.reference:
        raise BadInput(f"promote: {asked.reference} is the champion already")
    evidence: dict[str, Any] | None = None
    if mode != "off":
        try:
            verdict = judge_challenger(root, chosen)
            evidence = evidence_of(verdict)
            if verdict.promote or override or mode != "enforce":
                say(verdict.sentence)
        except BadInput as error:
            if not override:
                raise
            evidence = {"promote": False, "sentence": f"the gate could not judge: {error}"}
    return promote(root, chosen, reason=reason, evidence=evidence, override=override)
