"""The gate's rules: measurements in, what each rule says of them and a verdict out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Bound = Literal["value", "low", "high"]
Direction = Literal["above", "below"]
Finding = Literal["holds", "fails", "undecided", "note"]
Outcome = Literal["promote", "refuse", "undecided"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """Something that a rule may be about."""

    low: float
    high: float
    """Between what a threshold makes sense."""
    better: Literal["more", "less"]
    even: float | None = None
    """Its value for two equal models; None where it is about the challenger alone, and NAME_change compares."""

    @property
    def worse_end(self) -> Bound:
        """The end of an interval that speaks against the challenger."""
        return "low" if self.better == "more" else "high"


WINS = ("judge_win", "gold_win")
"""What a challenger is promoted for; their intervals are those of the look, not of `confidence`."""
CHANGE = "_change"
_OWN: dict[str, Quantity] = {
    "end_rate": Quantity(low=0.0, high=1.0, better="more"),
    "kl": Quantity(low=0.0, high=1000.0, better="less"),
    "repetition": Quantity(low=0.0, high=1.0, better="less"),
    "refusals": Quantity(low=0.0, high=1.0, better="less"),
    "judge": Quantity(low=-1000.0, high=1000.0, better="more"),
    "gold": Quantity(low=-1000.0, high=1000.0, better="more"),
}
QUANTITIES: dict[str, Quantity] = {
    "judge_win": Quantity(low=0.0, high=1.0, better="more", even=0.5),
    "gold_win": Quantity(low=0.0, high=1.0, better="more", even=0.5),
    "length_ratio": Quantity(low=0.0, high=100.0, better="less", even=1.0),
    **_OWN,
    **{
        name + CHANGE: Quantity(low=own.low - own.high, high=own.high - own.low, better=own.better, even=0.0)
        for name, own in _OWN.items()
    },
}
"""What a rule may be about. NAME_change is the challenger's less the opponent's, prompt by prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleSpec:
    """One line of the gate in mlflow/registry.yaml."""

    name: str
    direction: Direction
    threshold: float
    bound: Bound
    soft: bool
    margin: float | None = None
    """What `not_worse_by` said, for a rule that was given by it."""


def not_worse_by(name: str, margin: float, *, soft: bool) -> RuleSpec:
    """Spell out a margin: the interval's worse end may lie no further than it on the worse side of equality.

    Args:
        name: quantity; of one that is about the challenger alone, the change is meant.
        margin: above 0, in the unit of the quantity.
        soft: whether the rule never blocks.
    """
    full = name if QUANTITIES[name].even is not None else name + CHANGE
    about = QUANTITIES[full]
    even = about.even or 0.0
    more = about.better == "more"
    return RuleSpec(
        name=full,
        direction="above" if more else "below",
        threshold=round(even - margin if more else even + margin, 9),
        bound=about.worse_end,
        soft=soft,
        margin=margin,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceRule:
    """`gate.slices` in mlflow/registry.yaml."""

    fields: tuple[str, ...] | Literal["auto"]
    """Fields of the prompts' meta; auto takes all that have 2 to 12 values."""
    floor: float
    """Win rate by the judge below which a slice has collapsed, in [0, 0.5]; 0: slices are shown and never block."""
    prompts: int
    """Slices of fewer prompts are left out, at least 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A number with its interval, in the unit of the quantity; low = high = value where there is none."""

    value: float
    low: float
    high: float
    coverage: float | None = None
    """Of the interval, in (0, 1)."""
    p_value: float | None = None
    """Exact and one-sided, of a win rate against one half."""
    detail: str = ""
    """What the interval comes from, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule applied: what was measured against what was asked."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    threshold: float
    ok: bool
    direction: Direction
    bound: Bound
    soft: bool
    sentence: str
    verdict: Finding
    """`undecided` where the interval lies on both sides of the threshold; `note` for a soft rule that does not hold."""
    coverage: float | None = None
    p_value: float | None = None
    margin: float | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """How the challenger does on the prompts of one kind."""

    field: str
    """Of the prompts' `meta`."""
    value: str
    prompts: int
    rate: float
    """Win rate by the judge."""
    low: float
    high: float
    """Ends that hold for all slices at once."""
    ok: bool
    """Whether it did not collapse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the gate says, and about whom."""

    promote: bool
    reasons: tuple[Rule, ...]
    sentence: str
    challenger: str
    """Version number of the challenger."""
    champion: str | None
    """Version number of the champion it was judged against, None when there was none."""
    opponent: str
    """Who the challenger was compared with, in words."""
    prompts: int
    """Number of paired test prompts."""
    mode: str
    outcome: Outcome
    """`undecided` says that the prompts are too few to tell, `refuse` that they were enough."""
    slices: tuple[Slice, ...] = ()
    look: int | None = None
    """Which challenger this is that the gate looks at against this opponent; None where it did not compare."""
    error: float | None = None
    """Chance of promoting an equal challenger that this look may spend."""
    detectable: float | None = None
    """Win rate by the judge that so many prompts find at this look, with the configured power."""
    prompts_wanted: int | None = None
    """Prompts that would find the smallest gain of interest at this look."""
    conditions: str = ""
    """Digest of prompts, judge and decoding; two verdicts with another one are about other answers."""


def apply_rules(
    specs: Sequence[RuleSpec], measured: Mapping[str, Measured], *, smallest_effect: float = 0.0
) -> tuple[Rule, ...]:
    """Apply each rule; one about something that was not measured fails, unless it is soft.

    Args:
        specs: the rules.
        measured: by quantity.
        smallest_effect: gain in win rate that is worth finding; where the interval leaves no room for it, a challenger
            is not undecided but no better. 0 leaves it undecided.
    """
    return tuple(_apply(spec, measured.get(spec.name), smallest_effect) for spec in specs)


def _apply(spec: RuleSpec, found: Measured | None, smallest_effect: float) -> Rule:
    wanted = f"{spec.direction} {spec.threshold:g}"
    if found is None:
        said = f"{spec.name} was not measured, wanted {wanted}"
        ok, verdict = spec.soft, "holds" if spec.soft else "fails"
    else:
        end = float(getattr(found, spec.bound))
        ok = end > spec.threshold if spec.direction == "above" else end < spec.threshold
        open_still = not ok and spec.bound != "value" and _reaches(spec, found, 0.0)
        which = "" if spec.bound == "value" else f"{spec.bound} end "
        said = (
            f"{spec.name} {found.value:.3g} ({found.low:.3g} to {found.high:.3g}): {which}{end:.3g} "
            f"is {'' if ok else 'not '}{wanted}"
        )
        if open_still and spec.name in WINS and spec.margin is None and not _reaches(spec, found, smallest_effect):
            open_still = False
            said += f", and a gain of {smallest_effect:g} is ruled out"
        verdict = "holds" if ok else "note" if spec.soft else "undecided" if open_still else "fails"
    return Rule(
        name=spec.name,
        value=found.value if found else None,
        low=found.low if found else None,
        high=found.high if found else None,
        threshold=spec.threshold,
        ok=ok,
        direction=spec.direction,
        bound=spec.bound,
        soft=spec.soft,
        sentence=said,
        verdict=verdict,  # type: ignore[arg-type]
        coverage=found.coverage if found else None,
        p_value=found.p_value if found else None,
        margin=spec.margin,
        detail=found.detail if found else "",
    )


def _reaches(spec: RuleSpec, found: Measured, by: float) -> bool:
    """Tell whether the favourable end of the interval lies beyond the threshold by more than so much."""
    return found.high > spec.threshold + by if spec.direction == "above" else found.low < spec.threshold - by


def passes(rules: Sequence[Rule]) -> bool:
    """Tell whether every rule that is not soft holds."""
    return all(rule.ok or rule.soft for rule in rules)


def outcome_of(rules: Sequence[Rule]) -> Outcome:
    """Sum the rules up: one that surely fails refuses; without such a one, an undecided one leaves it open."""
    if passes(rules):
        return "promote"
    return "refuse" if any(rule.verdict == "fails" for rule in rules) else "undecided"
