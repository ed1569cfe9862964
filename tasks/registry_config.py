"""`mlflow/registry.yaml`: the registry's names and aliases and the gate's rules, checked when read."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from rlhf.errors import BadInput
from tasks.gate_rules import QUANTITIES, Bound, RuleSpec

FILE = Path("mlflow/registry.yaml")
Mode = Literal["off", "advise", "enforce"]
FirstChampion = Literal["beats_sft", "any"]

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
class Gate:
    """How a challenger is judged."""

    mode: Mode
    first_champion: FirstChampion
    resamples: int
    """Resamples of the prompts behind an interval, >= 100."""
    confidence: float
    """Coverage of the intervals, in (0, 1)."""
    seed: int
    rules: tuple[RuleSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryConfig:
    """The whole file."""

    prefix: str
    models: Models
    aliases: Aliases
    gate: Gate

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
    import yaml

    path = root / FILE
    if not path.is_file():
        raise BadInput(f"{path}: no such file; restore it with `git checkout {FILE}`")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{FILE}: not YAML ({' '.join(str(error).split())}); mend it or `git checkout {FILE}`"
        ) from error
    top = _section("", document, RegistryConfig)
    gate = _section("gate", top["gate"], Gate)
    if not isinstance(gate["rules"], list):
        raise BadInput(f"{FILE}: gate.rules is {type(gate['rules']).__name__}, wanted a list of rules")
    checked = {
        "mode": _one_of("gate.mode", gate["mode"], get_args(Mode)),
        "first_champion": _one_of("gate.first_champion", gate["first_champion"], get_args(FirstChampion)),
        "resamples": _number("gate.resamples", gate["resamples"], 100, 1e7, whole=True),
        "confidence": _number("gate.confidence", gate["confidence"], 0.5, 0.9999),
        "seed": _number("gate.seed", gate["seed"], 0, 2**31, whole=True),
        "rules": tuple(_rule(index, entry) for index, entry in enumerate(gate["rules"])),
    }
    models = {key: _name(f"models.{key}", value) for key, value in _section("models", top["models"], Models).items()}
    aliases = {key: _alias(key, value) for key, value in _section("aliases", top["aliases"], Aliases).items()}
    for section, names in (("models", models), ("aliases", aliases)):
        if len(set(names.values())) < len(names):
            raise BadInput(f"{FILE}: two entries of {section} have the same name; wanted {len(names)} different ones")
    prefix = top["prefix"]
    if not isinstance(prefix, str) or set(prefix) & set("/:@"):
        raise BadInput(f"{FILE}: prefix is {prefix!r}, wanted a text without / : @")
    return RegistryConfig(prefix=prefix, models=Models(**models), aliases=Aliases(**aliases), gate=Gate(**checked))


def _section(where: str, value: Any, kind: type[Any]) -> dict[str, Any]:
    """Check that a mapping has exactly the fields of its dataclass."""
    label = where or "the file"
    if not isinstance(value, Mapping):
        raise BadInput(f"{FILE}: {label} is {type(value).__name__}, wanted a mapping")
    known = [field.name for field in fields(kind)]
    _refuse_unknown(where, value, known)
    for name in known:
        if name not in value:
            raise BadInput(f"{FILE}: {_dotted(where, name)} is missing; add it")
    return dict(value)


def _refuse_unknown(where: str, value: Mapping[Any, Any], known: Sequence[str]) -> None:
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"did you mean {_dotted(where, near[0])}?" if near else f"known are {', '.join(known)}"
            raise BadInput(f"{FILE}: unknown key {_dotted(where, str(key))}; {hint}")


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _rule(index: int, entry: Any) -> RuleSpec:
    where = f"gate.rules[{index}]"
    if not isinstance(entry, Mapping):
        raise BadInput(f"{FILE}: {where} is {type(entry).__name__}, wanted a mapping such as {{name: kl, below: 5}}")
    _refuse_unknown(where, entry, ("name", "above", "below", "bound", "soft"))
    _one_of(f"{where}.name", entry.get("name"), tuple(QUANTITIES))
    if ("above" in entry) == ("below" in entry):
        raise BadInput(f"{FILE}: {where} has both or none of above and below; give one, and a second rule for a band")
    direction: Literal["above", "below"] = "above" if "above" in entry else "below"
    soft = entry.get("soft", False)
    if not isinstance(soft, bool):
        raise BadInput(f"{FILE}: {where}.soft is {soft!r}, wanted true or false")
    low, high = QUANTITIES[entry["name"]]
    return RuleSpec(
        name=entry["name"],
        direction=direction,
        threshold=_number(f"{where}.{direction}", entry[direction], low, high),
        bound=_one_of(f"{where}.bound", entry.get("bound", "value"), get_args(Bound)),
        soft=soft,
    )


def _one_of(where: str, value: Any, allowed: Sequence[str]) -> Any:
    # YAML reads a bare `off` as False, which is what a person means by it here.
    text = "off" if value is False and "off" in allowed else value
    if text not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"{FILE}: {where} is {value!r}, wanted one of {', '.join(allowed)}{hint}")
    return text


def _number(where: str, value: Any, low: float, high: float, *, whole: bool = False) -> Any:
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise BadInput(f"{FILE}: {where} is {value!r}, wanted {kind} from {low:g} to {high:g}")
    return value if whole else float(value)


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
