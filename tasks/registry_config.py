"""`mlflow/registry.yaml`: the registry's names and aliases and the gate's rules, checked when read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rlhf.errors import BadInput
from tasks.gate_config import Gate, read_gate
from tasks.registry_values import FILE, one_of, section

Weights = Literal["dvc", "copy"]
Lock = Literal["auto", "file", "prefect"]

POLICY_STAGES = ("sft", "ppo", "dpo")
MODEL_STAGES = ("sft", "reward", "judge", "ppo", "dpo")
"""Stages whose output is registered, in an order in which parents come first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """Registered names, without the prefix."""

    policy: str
    reward: str
    judge: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Aliases:
    """Names of the pointers that move."""

    champion: str
    challenger: str
    previous: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryConfig:
    """The whole file."""

    prefix: str
    models: Models
    aliases: Aliases
    gate: Gate
    weights: Weights = "dvc"
    """Where a version's weights are: in DVC's cache and remote only, or as a copy in MLflow, too."""
    lock: Lock = "auto"
    """What guards the champion's moves; see `tasks.promotion_lock`."""

    def model_of(self, stage: str) -> str:
        """Return the registered name, prefix included, under which a stage's output goes."""
        kind = "policy" if stage in POLICY_STAGES else stage
        return self.prefix + str(getattr(self.models, kind))

    @property
    def policy(self) -> str:
        """Registered name of the policies."""
        return self.model_of("ppo")

    @property
    def names(self) -> tuple[str, ...]:
        """All registered names."""
        return (self.policy, self.model_of("reward"), self.model_of("judge"))


def load_registry_config(root: Path) -> RegistryConfig:
    """Read and check mlflow/registry.yaml.

    Raises:
        BadInput: missing, not YAML, or any key or value that is not understood; the nearest known name is given.
    """
    from rlhf.config import parse

    path = root / FILE
    if not path.is_file():
        raise BadInput(f"{path}: no such file; restore it with `git checkout {FILE}`")
    try:
        document = parse(path.read_text(encoding="utf-8"), file=str(FILE))
    except UnicodeDecodeError as error:
        raise BadInput(f"{FILE}: not UTF-8 text (byte {error.start}); mend it or `git checkout {FILE}`") from error
    top = section("", document, RegistryConfig)
    gate = read_gate(top["gate"])
    models = {key: _name(f"models.{key}", value) for key, value in section("models", top["models"], Models).items()}
    aliases = {key: _alias(key, value) for key, value in section("aliases", top["aliases"], Aliases).items()}
    for part, names in (("models", models), ("aliases", aliases)):
        if len(set(names.values())) < len(names):
            raise BadInput(f"{FILE}: two entries of {part} have the same name; wanted {len(names)} different ones")
    prefix = top["prefix"]
    if not isinstance(prefix, str) or set(prefix) & set("/:@"):
        raise BadInput(f"{FILE}: prefix is {prefix!r}, wanted a text without / : @")
    return RegistryConfig(
        prefix=prefix,
        models=Models(**models),
        aliases=Aliases(**aliases),
        gate=gate,
        weights=one_of("weights", top.get("weights", "dvc"), get_args(Weights)),
        lock=one_of("lock", top.get("lock", "auto"), get_args(Lock)),
    )


def _name(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value or set(value) & set("/:@"):
        raise BadInput(f"{FILE}: {where} is {value!r}, wanted a name without / : @")
    return value


def _alias(key: str, value: Any) -> str:
    import re

    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w-]*", value):
        raise BadInput(f"{FILE}: aliases.{key} is {value!r}, wanted letters, digits, - and _ after a letter")
    if value == "latest" or re.fullmatch(r"[vV]\d+", value):
        raise BadInput(f"{FILE}: aliases.{key} is {value!r}, which MLflow keeps for itself; choose another")
    return value
