"""What the report says of champion and challenger: who they are, and every rule of the gate with its interval."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput, StageFailed

VERDICTS = {
    "promote": ("promote", "good"),
    "refuse": ("keep the champion", "wait"),
    "undecided": ("too few prompts to tell", "wait"),
}
"""Words and tone for what the gate says."""


@dataclass(frozen=True, slots=True)
class DecisionView:
    """The decision as the page shows it."""

    sentence: str
    rules: Sequence[Mapping[str, Any]]
    """Fields of `tasks.gate_rules.Rule`; empty where no verdict exists."""
    cards: list[dict[str, Any]]


def read_decision(root: Path) -> DecisionView:
    """Ask the registry and the gate, where there is a store; whatever is in the way becomes the sentence."""
    if not _has_store(root):
        return DecisionView("Nothing is registered yet: run `ratchet run`, which publishes and gates.", (), [])
    from tasks.gate import judge_challenger
    from tasks.mlflow_store import StoreUnreachable
    from tasks.registry import challenger, champion, history

    try:
        holder, contender = champion(root), challenger(root)
        cards = [_card("Champion", holder), _card("Challenger", contender)]
        if contender is None:
            return DecisionView("Nothing is @challenger, so there is nothing to decide.", (), cards)
        if holder is not None and holder.version == contender.version:
            return _view_of_history([asdict(move) for move in history(root)], holder.version, cards)
        verdict = judge_challenger(root)
    except (BadInput, StageFailed, StoreUnreachable) as error:
        return DecisionView(f"The gate could not decide: {error}.", (), [])
    word, tone = VERDICTS[verdict.outcome]
    cards.append({"label": "Verdict", "value": word, "tone": tone, "note": f"mode {verdict.mode}"})
    return DecisionView(verdict.sentence, [asdict(rule) for rule in verdict.reasons], cards)


def _view_of_history(moves: Sequence[Mapping[str, Any]], version: str, cards: list[dict[str, Any]]) -> DecisionView:
    """The challenger is champion already: show on what evidence it became that."""
    for move in reversed(moves):
        if move["after"] == version:
            evidence = move["evidence"] or {}
            against = "promoted against the verdict" if move["override"] else move["action"]
            minute = move["when"][:16].replace("T", " ")
            cards.append({"label": "Last decision", "value": against, "tone": "good", "note": minute})
            return DecisionView(
                f"The challenger is the champion: {move['reason']}", evidence.get("reasons") or (), cards
            )
    return DecisionView("The challenger is the champion; the history does not say how it became that.", (), cards)


def _card(label: str, version: Any) -> dict[str, Any]:
    if version is None:
        return {"label": label, "value": "none", "tone": "wait", "note": "nobody holds the alias"}
    return {"label": label, "value": version.reference, "note": f"{version.stage}, weights {version.output_md5[:8]}"}


def _has_store(root: Path) -> bool:
    """Whether there is a registry to ask; asking the default store would create an empty one."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (root / ".ratchet/state/mlflow.db").is_file()
