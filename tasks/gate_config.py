"""`gate` in mlflow/registry.yaml: how a challenger is judged, checked when read; no rule may be impossible.

A key that has a default here may be left out of the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlhf.errors import BadInput
from tasks.gate_rules import CHANGE, QUANTITIES, Bound, RuleSpec, SliceRule, not_worse_by
from tasks.registry_values import FILE, kind_of, number, one_of, refuse_unknown, section

Mode = Literal["off", "advise", "enforce"]
FirstChampion = Literal["beats_sft", "any"]

FEWEST_BEYOND = 5
"""Bootstrap resamples that must lie beyond each end of an interval for the end to mean anything."""
SLICES = SliceRule(fields="auto", floor=0.4, prompts=20)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """How a challenger is judged."""

    mode: Mode
    first_champion: FirstChampion
    resamples: int
    """Resamples of the prompts behind an interval, >= 100."""
    confidence: float
    """Coverage of the intervals of all but the win rates, in (0, 1)."""
    seed: int
    rules: tuple[RuleSpec, ...]
    false_promotions: float = 0.05
    """Chance that any of all challengers that are no better than one champion is ever promoted against it."""
    smallest_effect: float = 0.05
    """Gain in win rate that is worth finding, in (0, 0.5)."""
    power: float = 0.8
    """Chance with which it should be found; behind the number of prompts that would do."""
    slices: SliceRule = SLICES
    approval: bool = False
    """Whether a good challenger waits for a person."""


def read_gate(value: Any) -> Gate:
    """Check the section.

    Raises:
        BadInput: anything is not understood, or no challenger could pass.
    """
    found = section("gate", value, Gate)
    if not isinstance(found["rules"], list):
        raise BadInput(f"{FILE}: gate.rules is {kind_of(found['rules'])}, wanted a list of rules")
    ranges: dict[str, tuple[float, float, bool]] = {
        "resamples": (100, 1e7, True),
        "confidence": (0.5, 0.9999, False),
        "seed": (0, 2**31, True),
        "false_promotions": (0.0001, 0.5, False),
        "smallest_effect": (0.001, 0.499, False),
        "power": (0.5, 0.999, False),
    }
    numbers = {
        name: number(f"gate.{name}", found[name], low, high, whole=whole)
        for name, (low, high, whole) in ranges.items()
        if name in found
    }
    approval = found.get("approval", False)
    if not isinstance(approval, bool):
        raise BadInput(f"{FILE}: gate.approval is {approval!r}, wanted true or false")
    gate = Gate(
        approval=approval,
        mode=one_of("gate.mode", found["mode"], get_args(Mode)),
        first_champion=one_of("gate.first_champion", found["first_champion"], get_args(FirstChampion)),
        rules=tuple(_rule(index, entry) for index, entry in enumerate(found["rules"])),
        slices=_slices(found["slices"]) if "slices" in found else SLICES,
        **numbers,
    )
    _possible(gate)
    return gate


def _rule(index: int, entry: Any) -> RuleSpec:
    where = f"gate.rules[{index}]"
    if not isinstance(entry, Mapping):
        raise BadInput(f"{FILE}: {where} is {kind_of(entry)}, wanted a mapping such as {{name: kl, below: 5}}")
    refuse_unknown(where, entry, ("name", "above", "below", "not_worse_by", "bound", "soft"))
    name = one_of(f"{where}.name", entry.get("name"), tuple(QUANTITIES))
    given: list[Any] = [key for key in ("above", "below", "not_worse_by") if key in entry]
    if len(given) != 1:
        raise BadInput(
            f"{FILE}: {where} has {' and '.join(given) or 'none of above, below and not_worse_by'}, wanted one of "
            "above, below and not_worse_by; a second rule makes a band"
        )
    soft = entry.get("soft", False)
    if not isinstance(soft, bool):
        raise BadInput(f"{FILE}: {where}.soft is {soft!r}, wanted true or false")
    if given == ["not_worse_by"]:
        return _margin(where, name, entry, soft=soft)
    about, direction = QUANTITIES[name], given[0]
    threshold = number(f"{where}.{direction}", entry[direction], about.low, about.high)
    last = about.high if direction == "above" else about.low
    if threshold == last:
        raise BadInput(f"{FILE}: {where}: {name} is never {direction} {threshold:g}, so nobody could pass; change it")
    bound = one_of(f"{where}.bound", entry.get("bound", "value"), get_args(Bound))
    return RuleSpec(name=name, direction=direction, threshold=threshold, bound=bound, soft=soft)


def _margin(where: str, name: str, entry: Mapping[str, Any], *, soft: bool) -> RuleSpec:
    if "bound" in entry:
        raise BadInput(f"{FILE}: {where}.bound: not_worse_by is always about the worse end; remove the key")
    if name.endswith(CHANGE):
        raise BadInput(f"{FILE}: {where}.name is {name!r}, wanted {name.removesuffix(CHANGE)} beside not_worse_by")
    about = QUANTITIES[name]
    most = about.even if about.even is not None else about.high
    margin = number(f"{where}.not_worse_by", entry["not_worse_by"], 0.0, most)
    if margin == 0:
        raise BadInput(f"{FILE}: {where}.not_worse_by is 0, which equal models never show; give a margin above 0")
    return not_worse_by(name, margin, soft=soft)


def _slices(value: Any) -> SliceRule:
    found = section("gate.slices", value, SliceRule)
    names = found["fields"]
    if names != "auto" and (not isinstance(names, list) or not all(isinstance(name, str) for name in names)):
        raise BadInput(f"{FILE}: gate.slices.fields is {names!r}, wanted auto or a list of fields of the prompts' meta")
    return SliceRule(
        fields="auto" if names == "auto" else tuple(names),
        floor=number("gate.slices.floor", found["floor"], 0.0, 0.5),
        prompts=number("gate.slices.prompts", found["prompts"], 2, 1e6, whole=True),
    )


def _possible(gate: Gate) -> None:
    """Refuse rules that contradict each other, that ask for nothing, or that the resamples cannot answer."""
    binding = [rule for rule in gate.rules if not rule.soft]
    if gate.mode != "off" and not binding:
        raise BadInput(f"{FILE}: gate.rules has no rule that binds, so everybody would pass; add one, or say mode: off")
    for rule in binding:
        for other in binding:
            if rule.name == other.name and _exclude(rule, other):
                raise BadInput(
                    f"{FILE}: gate.rules: nobody has {rule.name} above {rule.threshold:g} ({rule.bound}) and below "
                    f"{other.threshold:g} ({other.bound}) at once; change one of the two rules"
                )
    needed = round(2 * FEWEST_BEYOND / (1 - gate.confidence))
    if gate.resamples < needed:
        raise BadInput(
            f"{FILE}: gate.resamples is {gate.resamples}, wanted at least {needed} for a confidence of "
            f"{gate.confidence:g}; raise the one or lower the other"
        )


def _exclude(above: RuleSpec, below: RuleSpec) -> bool:
    """Tell whether no interval passes both; its ends are in order, so a higher end may pass what a lower one cannot."""
    order: Sequence[Bound] = ("low", "value", "high")
    return (
        above.direction == "above"
        and below.direction == "below"
        and above.threshold >= below.threshold
        and order.index(above.bound) <= order.index(below.bound)
    )
