"""The registered versions and the aliases that point at them; the one place where `@champion` moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import BadInput
from tasks.dvc_store import keep_weights
from tasks.history import Action, Move, append_move, champions_in_force, now, read_moves, who, with_discrepancies
from tasks.live_run import OUTPUT, STAGE
from tasks.mlflow_store import connect, exclusive, translated
from tasks.registry_config import RegistryConfig, load_registry_config
from tasks.settings import state_dir
from tasks.stage_outputs import MODELS
from tasks.weights import resolve_weights

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "ChampionMoved", "GateRefused", "Version", "challenger", "champion", "history", "promote", "resolve_weights",
    "rollback", "version", "versions",
]  # fmt: skip


class GateRefused(Exception):
    """The gate's verdict is no, and nobody overrode it."""

    exit_code = 1


class ChampionMoved(Exception):
    """Another champion is in place than the one that the evidence is about."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """One registered version."""

    model: str
    version: str
    """Its number, as MLflow writes it."""
    stage: str
    output_md5: str
    aliases: tuple[str, ...]
    created: float
    """Seconds since 1970."""
    run_id: str
    tags: Mapping[str, str]

    @property
    def reference(self) -> str:
        """How one names it to a command."""
        return f"{self.model}/{self.version}"


def versions(root: Path, model: str | None = None) -> list[Version]:
    """List the versions of a registered model (by default the policies), newest first."""
    with _opened(root) as (client, config):
        name = model or config.policy
        aliases = _aliases(client, name)
        found = [_version(entry, aliases) for entry in client.search_model_versions(f"name = '{name}'")]
    return sorted(found, key=lambda entry: int(entry.version), reverse=True)


def version(root: Path, number: str | int) -> Version:
    """Return one policy version.

    Args:
        root: the project's root.
        number: 3, "3", "v3", "policy/3" or "policy/v3", or an alias as in "@challenger".

    Raises:
        BadInput: there is no such version.
    """
    with _opened(root) as (client, config):
        found = _find(client, config, str(number))
        return _version(found, _aliases(client, found.name))


def champion(root: Path) -> Version | None:
    """Return the policy that is champion, None when there is none."""
    with _opened(root) as (client, config):
        return _aliased(client, config, config.aliases.champion)


def challenger(root: Path) -> Version | None:
    """Return the policy that the newest evaluation selected, None when there is none."""
    with _opened(root) as (client, config):
        return _aliased(client, config, config.aliases.challenger)


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
        BadInput: nothing to go back to, no such version, or its weights are gone.
    """
    if to is not None:
        return _move(root, str(to), "rollback", reason=reason, evidence={}, override=False)
    with _opened(root) as (client, config):
        stack = _stack(client, root, config)
        previous = _aliased(client, config, config.aliases.previous)
    target = stack[-2] if len(stack) > 1 else previous.version if previous else None
    if target is None:
        raise BadInput("rollback: there was no champion before this one; name a version with --to")
    return _move(root, target, "rollback", reason=reason, evidence={}, override=False)


def history(root: Path) -> list[Move]:
    """Return every move of the champion, oldest first, those made without ratchet included."""
    with _opened(root) as (client, config):
        present = _aliased(client, config, config.aliases.champion)
    return with_discrepancies(read_moves(root, config.policy), present.version if present else None, config.policy)


def _move(
    root: Path,
    number: str,
    action: Action,
    *,
    reason: str,
    evidence: Mapping[str, Any],
    override: bool,
    check: Any = None,
) -> Move:
    """Compare and set under the mutex: what is champion is read again inside it, and nothing else may move it."""
    with exclusive(state_dir(root) / "registry.lock"), _opened(root) as (client, config):
        target = _find(client, config, number)
        if target.name != config.policy:
            raise BadInput(f"{action}: {target.name}/{target.version} is no policy; only policies become champion")
        present = _aliased(client, config, config.aliases.champion)
        before, after = present.version if present else None, str(target.version)
        if before == after:
            raise BadInput(f"{action}: {target.name}/{after} is the champion already")
        if check is not None:
            check(before, after)
        kept = keep_weights(root, target.tags[OUTPUT], MODELS + target.tags[STAGE])
        found = {**evidence, "weights": "remote" if kept == "remote" else "kept"}
        move = Move(
            when=now(), who=who(), action=action, model=target.name, before=before, after=after,
            reason=reason, evidence=found, override=override,
        )  # fmt: skip
        client.set_registered_model_alias(target.name, config.aliases.champion, after)
        append_move(root, move)
        _set_previous(client, root, config)
        return move


def _set_previous(client: MlflowClient, root: Path, config: RegistryConfig) -> None:
    """Point `@previous` at what a rollback would return to, or nowhere."""
    stack = _stack(client, root, config)
    if len(stack) > 1:
        client.set_registered_model_alias(config.policy, config.aliases.previous, stack[-2])
    else:
        client.delete_registered_model_alias(config.policy, config.aliases.previous)


def _stack(client: MlflowClient, root: Path, config: RegistryConfig) -> list[str]:
    """Return the champions to go back through, those left out whose version was deleted since."""
    present = _aliased(client, config, config.aliases.champion)
    moves = with_discrepancies(read_moves(root, config.policy), present.version if present else None, config.policy)
    alive = {str(entry.version) for entry in client.search_model_versions(f"name = '{config.policy}'")}
    return [number for number in champions_in_force(moves) if number in alive]


@contextmanager
def _opened(root: Path) -> Iterator[tuple[MlflowClient, RegistryConfig]]:
    config = load_registry_config(root)
    client = connect(root)
    with translated(client.tracking_uri):
        yield client, config


def _find(client: MlflowClient, config: RegistryConfig, number: str) -> ModelVersion:
    name, slash, rest = number.rpartition("/")
    model = config.prefix + name.removeprefix(config.prefix) if slash else config.policy
    if "@" in rest:
        found = _aliased(client, config, rest.rpartition("@")[2])
        rest = found.version if found else rest
    digits = rest[1:] if rest[:1] in ("v", "V") else rest
    entries = {str(entry.version): entry for entry in client.search_model_versions(f"name = '{model}'")}
    if digits not in entries:
        known = ", ".join(sorted(entries, key=int)) or "none yet, so `ratchet publish` first"
        raise BadInput(f"{model}: there is no version {number!r}; known are {known}")
    return entries[digits]


def _aliased(client: MlflowClient, config: RegistryConfig, alias: str) -> Version | None:
    aliases = _aliases(client, config.policy)
    number = aliases.get(alias)
    if number is None:
        return None
    for entry in client.search_model_versions(f"name = '{config.policy}'"):
        if str(entry.version) == number:
            return _version(entry, aliases)
    return None


def _aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Return version by alias; none for a model that was never registered."""
    found = client.search_registered_models(f"name = '{name}'")
    return {alias: str(number) for alias, number in found[0].aliases.items()} if found else {}


def _version(entry: ModelVersion, aliases: Mapping[str, str]) -> Version:
    number = str(entry.version)
    return Version(
        model=str(entry.name),
        version=number,
        stage=entry.tags.get(STAGE, ""),
        output_md5=entry.tags.get(OUTPUT, ""),
        aliases=tuple(sorted(alias for alias, pointed in aliases.items() if pointed == number)),
        created=entry.creation_timestamp / 1000,
        run_id=str(entry.run_id or ""),
        tags=dict(entry.tags),
    )
