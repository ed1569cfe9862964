"""The registered versions and the aliases that point at them; the one place where `@champion` moves."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import BadInput
from tasks.dvc_store import keep_weights
from tasks.history import (
    Action,
    Move,
    append_move,
    begin_move,
    begun_move,
    champions_in_force,
    end_move,
    now,
    read_moves,
    tag_of,
    who,
    with_discrepancies,
)
from tasks.live_run import OUTPUT, STAGE
from tasks.promotion_lock import TAG as LOCK_TAG
from tasks.promotion_lock import guard_of, held, require_same
from tasks.registry_config import RegistryConfig, load_registry_config
from tasks.registry_lookup import (
    DECISION,
    WEIGHTS,
    Version,
    aliased,
    aliases_of,
    find,
    identity,
    opened,
    registered,
    version_of,
)
from tasks.stage_outputs import MODELS
from tasks.weights import resolve_weights

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

__all__ = [
    "ChampionMoved",
    "GateRefused",
    "Version",
    "challenger",
    "champion",
    "history",
    "promote",
    "require_guard",
    "resolve_weights",
    "rollback",
    "version",
    "versions",
]  # fmt: skip

VERDICT = "ratchet.verdict"
"""Tag of a version: the gate's sentence about it."""
LONGEST_SENTENCE = 2000


class GateRefused(Exception):
    """The gate's verdict is no, and nobody overrode it."""

    exit_code = 1


class ChampionMoved(Exception):
    """Another champion is in place than the one that the evidence is about."""

    exit_code = 1


def versions(root: Path, model: str | None = None) -> list[Version]:
    """List the versions of a registered model (by default the policies), newest first."""
    with opened(root) as (client, config):
        name = model or config.policy
        aliases = aliases_of(client, name)
        found = [version_of(entry, aliases) for entry in client.search_model_versions(f"name = '{name}'")]
    return sorted(found, key=lambda entry: int(entry.version), reverse=True)


def version(root: Path, number: str | int) -> Version:
    """Return one policy version.

    Args:
        root: the project's root.
        number: 3, "3", "v3", "policy/3" or "policy/v3", or an alias as in "@challenger".

    Raises:
        BadInput: there is no such version.
    """
    with opened(root) as (client, config):
        found = find(client, config, str(number))
        return version_of(found, aliases_of(client, found.name))


def champion(root: Path) -> Version | None:
    """Return the policy that is champion, None when there is none."""
    with opened(root) as (client, config):
        return aliased(client, config, config.aliases.champion)


def challenger(root: Path) -> Version | None:
    """Return the policy that the newest evaluation selected, None when there is none."""
    with opened(root) as (client, config):
        return aliased(client, config, config.aliases.challenger)


def promote(
    root: Path, number: str | int, *, reason: str, evidence: Mapping[str, Any] | None = None, override: bool = False
) -> Move:
    """Make a policy version the champion.

    Args:
        root: the project's root.
        number: as in `version`.
        reason: why, for the history.
        evidence: what the gate found: `promote`, and `champion` that it compared with. None where nobody asked it.
        override: go against the gate's verdict.

    Returns:
        The move as recorded.

    Raises:
        GateRefused: the evidence says no, the gate is in force, and `override` is false.
        ChampionMoved: the champion is not the one that the evidence is about.
        BadInput: no such version, no reason, already champion, or its weights are gone.
        NoLock: nothing guards the champion; see `tasks.promotion_lock`.
    """
    if not reason.strip():
        raise BadInput("promote: the reason is empty, wanted a sentence for the history")
    found = dict(evidence or {})
    config = load_registry_config(root)
    refused = config.gate.mode == "enforce" and found.get("promote") is False
    if refused and not override:
        raise GateRefused(f"promote: the gate refuses version {number}: {found.get('sentence', 'no reason recorded')}")

    def check(before: str | None, after: str) -> None:
        if "champion" in found and found["champion"] != before:
            raise ChampionMoved(
                f"promote: version {after} was compared with champion {found['champion'] or 'none'}, but the champion "
                f"is {before or 'none'} now; run `ratchet gate {after}` again"
            )

    return _move(root, str(number), "promote", reason=reason, evidence=found, override=refused, check=check)


def rollback(root: Path, *, to: str | int | None = None, reason: str = "rolled back") -> Move:
    """Return to the champion before this one, or to a version of choice.

    Raises:
        BadInput: nothing to go back to, no such version, no reason, or its weights are gone.
        NoLock: nothing guards the champion; see `tasks.promotion_lock`.
    """
    if not reason.strip():
        raise BadInput("rollback: the reason is empty, wanted a sentence for the history")
    return _move(root, None if to is None else str(to), "rollback", reason=reason, evidence={}, override=False)


def history(root: Path) -> list[Move]:
    """Return every move of the champion, oldest first, those made without ratchet included."""
    with opened(root) as (client, config):
        present = aliased(client, config, config.aliases.champion)
        return _moves(root, config, registered(client, config.policy), present.version if present else None)


def require_guard(root: Path) -> None:
    """Refuse at once what `promote` and `rollback` would refuse in the end.

    Raises:
        NoLock: nothing guards the champion; see `tasks.promotion_lock`.
    """
    guard_of(root, load_registry_config(root))


def _move(
    root: Path,
    number: str | None,
    action: Action,
    *,
    reason: str,
    evidence: Mapping[str, Any],
    override: bool,
    check: Any = None,
) -> Move:
    """Compare and set under the guard: what is champion is read again inside it, and nothing else may move it."""
    config = load_registry_config(root)
    guard = guard_of(root, config)
    with held(guard, root), opened(root) as (client, _):
        present = aliased(client, config, config.aliases.champion)
        before = present.version if present else None
        _finish_begun(root, client, config, before)
        model = registered(client, config.policy)
        labelled = model.tags.get(LOCK_TAG) if model else None
        require_same(labelled, guard, config.policy)
        moves = _moves(root, config, model, before)
        target = find(client, config, number if number is not None else _previous(client, config, moves, before))
        if target.name != config.policy:
            raise BadInput(f"{action}: {target.name}/{target.version} is no policy; only policies become champion")
        after = str(target.version)
        if before == after:
            raise BadInput(f"{action}: {target.name}/{after} is the champion already")
        if check is not None:
            check(before, after)
        found = {**evidence, "weights": _safe(root, target)}
        move = Move(
            when=now(), who=who(), action=action, model=target.name, before=before, after=after,
            reason=reason, evidence=found, override=override, id=uuid.uuid4().hex,
            number=1 + max((one.number for one in moves), default=0), registry=identity(model),
        )  # fmt: skip
        begin_move(root, move)
        if guard.label and labelled is None:
            client.set_registered_model_tag(target.name, LOCK_TAG, guard.label)
        client.set_registered_model_alias(target.name, config.aliases.champion, after)
        _record(root, client, move)
        _set_previous(client, config, [*moves, move])
        return move


def _safe(root: Path, target: ModelVersion) -> str:
    """Make sure that the weights of a champion stay: by a copy in MLflow, in the remote, or by links of our own."""
    if target.tags.get(WEIGHTS) == "copy":
        return "copy"
    kept = keep_weights(root, target.tags[OUTPUT], MODELS + target.tags[STAGE])
    return "remote" if kept == "remote" else "kept"


def _record(root: Path, client: MlflowClient, move: Move) -> None:
    """Write a move that was made where everybody sees it, and into our own file."""
    client.set_registered_model_tag(move.model, *tag_of(move))
    append_move(root, move)
    end_move(root)
    decided, number = ("promoted", move.after) if move.action == "promote" else ("rolled back", move.before)
    if number is None or number not in _alive(client, move.model):
        return
    client.set_model_version_tag(move.model, number, DECISION, decided)
    if decided == "promoted" and move.evidence.get("sentence"):
        client.set_model_version_tag(move.model, number, VERDICT, str(move.evidence["sentence"])[:LONGEST_SENTENCE])


def _finish_begun(root: Path, client: MlflowClient, config: RegistryConfig, champion: str | None) -> None:
    """Record a move whose process died after it had set the alias; forget one that never did."""
    begun = begun_move(root)
    if begun is None:
        return
    model = registered(client, config.policy)
    if model is not None and begun.model == config.policy and begun.registry == identity(model):
        known = {one.id for one in read_moves(root, config.policy, tags=model.tags)}
        if begun.after == champion and begun.id not in known:
            _record(root, client, begun)
    end_move(root)


def _moves(root: Path, config: RegistryConfig, model: RegisteredModel | None, champion: str | None) -> list[Move]:
    """Return the history as `history` does; `champion` is what the registry says now."""
    tags, which = (dict(model.tags), identity(model)) if model else ({}, "")
    moves = read_moves(root, config.policy, registry=which, tags=tags)
    begun = begun_move(root)
    if begun is not None and begun.registry == which and begun.after == champion:
        moves += [begun] if begun.id not in {move.id for move in moves} else []
    return with_discrepancies(moves, champion, config.policy)


def _previous(client: MlflowClient, config: RegistryConfig, moves: list[Move], champion: str | None) -> str:
    """Return the version to roll back to: the champion before this one, or the last one while there is none."""
    before = [number for number in _stack(client, config, moves) if number != champion]
    pointed = aliased(client, config, config.aliases.previous)
    if not before and pointed is not None and pointed.version != champion:
        return pointed.version
    if not before:
        raise BadInput("rollback: there was no champion before this one; name a version with --to")
    return before[-1]


def _set_previous(client: MlflowClient, config: RegistryConfig, moves: list[Move]) -> None:
    """Point `@previous` at what a rollback would return to, or nowhere."""
    stack = _stack(client, config, moves)
    if len(stack) > 1:
        client.set_registered_model_alias(config.policy, config.aliases.previous, stack[-2])
    else:
        client.delete_registered_model_alias(config.policy, config.aliases.previous)


def _stack(client: MlflowClient, config: RegistryConfig, moves: list[Move]) -> list[str]:
    """Return the champions to go back through, those left out whose version was deleted since."""
    alive = _alive(client, config.policy)
    stack = [number for number in champions_in_force(moves) if number in alive]
    return [number for place, number in enumerate(stack) if place == 0 or stack[place - 1] != number]


def _alive(client: MlflowClient, name: str) -> set[str]:
    return {str(entry.version) for entry in client.search_model_versions(f"name = '{name}'")}
