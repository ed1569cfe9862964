"""Finding things in the registry: a version by what a person types, a pointer, a registered model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import BadInput
from tasks.live_run import OUTPUT, STAGE
from tasks.mlflow_store import connect, translated
from tasks.registry_config import RegistryConfig, load_registry_config

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

DECISION = "ratchet.decision"
"""Tag of a version: what became of it; pending, refused, superseded, promoted or rolled back."""
WEIGHTS = "ratchet.weights"
"""Tag of a version: dvc, or copy where MLflow holds its weights, too."""


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

    @property
    def decision(self) -> str:
        """What became of it, as the tag `DECISION` says; "" while nothing was decided."""
        return self.tags.get(DECISION, "")


@contextmanager
def opened(root: Path) -> Iterator[tuple[MlflowClient, RegistryConfig]]:
    """Connect to the registry; failures of the store within the block become StoreUnreachable."""
    config = load_registry_config(root)
    client = connect(root)
    with translated(client.tracking_uri):
        yield client, config


def find(client: MlflowClient, config: RegistryConfig, number: str) -> ModelVersion:
    """Return the version that a person means; see `tasks.registry.version`.

    Raises:
        BadInput: there is none; the known ones are named.
    """
    head, at, alias = number.partition("@")
    name, slash, rest = (head, bool(head), "") if at else _parts(number)
    model = config.prefix + name.removeprefix(config.prefix) if slash else config.policy
    pointed = aliases_of(client, model).get(alias, number) if at else rest
    digits = pointed[1:] if pointed[:1] in ("v", "V") else pointed
    entries = {str(entry.version): entry for entry in client.search_model_versions(f"name = '{model}'")}
    if digits not in entries:
        known = ", ".join(sorted(entries, key=int)) or "none yet, so `ratchet publish` first"
        raise BadInput(f"{model}: there is no version {number!r}; known are {known}")
    return entries[digits]


def _parts(number: str) -> tuple[str, bool, str]:
    name, slash, rest = number.rpartition("/")
    return name, bool(slash), rest


def aliased(client: MlflowClient, config: RegistryConfig, alias: str) -> Version | None:
    """Return the policy that an alias points at, None when it points nowhere."""
    aliases = aliases_of(client, config.policy)
    number = aliases.get(alias)
    if number is None:
        return None
    for entry in client.search_model_versions(f"name = '{config.policy}'"):
        if str(entry.version) == number:
            return version_of(entry, aliases)
    return None


def aliases_of(client: MlflowClient, name: str) -> dict[str, str]:
    """Return version by alias; none for a model that was never registered."""
    model = registered(client, name)
    return {alias: str(number) for alias, number in model.aliases.items()} if model else {}


def registered(client: MlflowClient, name: str) -> RegisteredModel | None:
    """Return the registered model with its aliases and tags, None when nothing was registered under that name."""
    found = client.search_registered_models(f"name = '{name}'")
    return found[0] if found else None


def identity(model: RegisteredModel | None) -> str:
    """Tell a registered model from one of the same name that was made after it was deleted."""
    return str(model.creation_timestamp) if model else ""


def version_of(entry: ModelVersion, aliases: Mapping[str, str]) -> Version:
    """Write MLflow's entry as ours."""
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
