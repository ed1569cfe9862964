"""The gate: is the challenger better than the champion, on the same frozen test prompts?

The method was chosen on dev prompts (`@challenger` is the evaluation's choice); here only test prompts count. See
docs/gate.md for what is guaranteed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from rlhf.evaluation.sample_size import detectable, prompts_for
from rlhf.evaluation.statistics import win_points
from tasks.approval import record_decision
from tasks.gate_config import Gate
from tasks.gate_evaluation import BASELINE, Evaluated, answers_of, load_evaluation
from tasks.gate_looks import allowance, record_look
from tasks.gate_measure import Answer, measure
from tasks.gate_rules import WINS, Rule, RuleSpec, Slice, Verdict, apply_rules, outcome_of
from tasks.gate_slices import measure_slices, rule_of
from tasks.history import Move
from tasks.registry import Version, challenger, champion, promote, require_guard, version
from tasks.registry_config import load_registry_config

__all__ = ["Decision", "Rule", "RuleSpec", "Slice", "Verdict", "decide_and_promote", "judge_challenger"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What came of a challenger."""

    verdict: Verdict | None
    """None when the gate is off or there is no challenger."""
    move: Move | None
    """The champion's move, None when it stays."""
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two models' answers under the rules, before anybody says who they are."""

    rules: tuple[Rule, ...]
    slices: tuple[Slice, ...]
    prompts: int
    detectable: float | None
    prompts_wanted: int | None

    @property
    def sentence(self) -> str:
        """What the rules come to."""
        outcome = outcome_of(self.rules)
        if outcome == "promote":
            noted = [rule.sentence for rule in self.rules if not rule.ok]
            return ("every rule that binds holds, but " if noted else "every rule holds") + "; ".join(noted)
        finding = "fails" if outcome == "refuse" else "undecided"
        return "; ".join(rule.sentence for rule in self.rules if rule.verdict == finding)


def judge_challenger(root: Path, number: str | int | None = None) -> Verdict:
    """Judge a version against the champion, or where there is none against the sft model, as the rules say.

    Args:
        root: the project's root.
        number: the version, by default the one that `@challenger` points at.

    Raises:
        BadInput: no challenger, no evaluation, or weights that are gone.
        StageFailed: answers could not be generated.
        StoreUnreachable: MLflow is down.
    """
    config = load_registry_config(root)
    gate = config.gate
    contender = challenger(root) if number is None else version(root, number)
    if contender is None:
        raise BadInput("gate: nothing is @challenger; run `ratchet run` or `ratchet publish`, or name a version")
    if contender.model != config.policy:
        raise BadInput(f"gate: {contender.reference} is no policy; only policies are compared")
    holder = champion(root)
    if holder is not None and holder.output_md5 == contender.output_md5 and holder.stage == contender.stage:
        said = (
            f"{contender.reference} is the champion already"
            if holder.version == contender.version
            else (f"{contender.reference} has the same weights as the champion {holder.reference}")
        )
        return _unlooked(contender, holder, gate, promote=False, sentence=said)
    if holder is None and gate.first_champion == "any":
        return _unlooked(contender, None, gate, promote=True, sentence="there is no champion, and any may be the first")
    evaluated = load_evaluation(root)
    # Both sides' answers first: a comparison that cannot be made is no look.
    ours, theirs = answers_of(root, contender, evaluated), answers_of(root, holder, evaluated)
    return _compared(root, contender, holder, gate, evaluated, (ours, theirs))


def compare(
    ours: Sequence[Answer], theirs: Sequence[Answer], gate: Gate, *, error: float, tolerance: float
) -> Comparison:
    """Apply every rule of the gate to two models' answers to the same prompts, in the same order.

    Args:
        ours: the challenger's.
        theirs: the opponent's.
        gate: the rules.
        error: chance that this look may promote an equal challenger.
        tolerance: judge or gold scores no further apart are a tie.
    """
    measured = measure(
        ours, theirs, tolerance=tolerance, resamples=gate.resamples, level=gate.confidence, seed=gate.seed, error=error
    )
    rules = apply_rules(gate.rules, measured, smallest_effect=gate.smallest_effect)
    slices = measure_slices(ours, theirs, gate.slices, tolerance=tolerance, level=gate.confidence)
    collapsed = rule_of(slices, gate.slices, gate.confidence)
    points = win_points([a.judge for a in ours], [b.judge for b in theirs], tolerance=tolerance)
    asked = next((r.threshold for r in gate.rules if r.name == "judge_win" and r.direction == "above"), 0.5)
    how = {"ties": float((points == 0.5).mean()), "tail": error, "wanted": gate.power, "threshold": asked}
    return Comparison(
        rules=(*rules, collapsed) if collapsed else rules,
        slices=slices,
        prompts=len(ours),
        detectable=detectable(len(ours), **how),
        prompts_wanted=prompts_for(asked + gate.smallest_effect, **how),
    )


def decide_and_promote(root: Path) -> Decision:
    """Move `@champion` to the challenger when the verdict says so; the end of a retraining run.

    Returns:
        What was decided. With mode `advise` a good challenger waits for `ratchet promote`.

    Raises:
        BadInput: as `judge_challenger` and `promote`.
        StageFailed: answers could not be generated.
        StoreUnreachable: MLflow is down.
    """
    gate = load_registry_config(root).gate
    contender = challenger(root)
    if contender is None:
        return Decision(verdict=None, move=None, sentence="nothing is @challenger, so nothing is promoted")
    holder = champion(root)
    if holder is not None and holder.version == contender.version:
        return Decision(verdict=None, move=None, sentence=f"{contender.reference} is the champion already")
    asks = f"a person decides, `ratchet promote {contender.version} --reason ...` makes it champion"
    if gate.mode == "off" and gate.approval:
        record_decision(root, contender, "pending", None)
        return Decision(verdict=None, move=None, sentence=f"{asks}; the gate is off")
    if not gate.approval and gate.mode != "advise":
        require_guard(root)
    if gate.mode == "off":
        move = promote(root, contender.version, reason="the gate is off", evidence=None)
        return Decision(verdict=None, move=move, sentence=f"{contender.reference} is champion; the gate is off")
    verdict = judge_challenger(root)
    if not verdict.promote:
        record_decision(root, contender, "pending" if gate.mode == "advise" else "refused", verdict)
        return Decision(verdict=verdict, move=None, sentence=f"not promoted: {verdict.sentence}")
    if gate.mode == "advise" or gate.approval:
        record_decision(root, contender, "pending", verdict)
        return Decision(verdict=verdict, move=None, sentence=f"{asks}: {verdict.sentence}")
    move = promote(root, contender.version, reason=verdict.sentence, evidence=evidence_of(verdict))
    return Decision(verdict=verdict, move=move, sentence=f"promoted: {verdict.sentence}")


def evidence_of(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as the history keeps it."""
    return asdict(verdict)


def _compared(
    root: Path,
    contender: Version,
    holder: Version | None,
    gate: Gate,
    evaluated: Evaluated,
    answers: tuple[Sequence[Answer], Sequence[Answer]],
) -> Verdict:
    """Spend the look, compare and put it into words."""
    look = record_look(
        root,
        model=contender.model,
        opponent=_weights(holder) if holder else "none",
        challenger=_weights(contender),
        conditions=evaluated.digest(),
        total=gate.false_promotions,
    )
    error = allowance(gate.false_promotions, look.number)  # of the rules as they are now
    tolerance = float(evaluated.settings.get("tie_tolerance", 0.0))
    found = compare(*answers, gate, error=error, tolerance=tolerance)
    against = f"champion {holder.reference}" if holder else "sft (there is no champion yet)"
    outcome = outcome_of(found.rules)
    about = f"{contender.reference} ({contender.stage}) against {against} on {found.prompts} prompts"
    said = f"{about}: {found.sentence}"
    if outcome == "undecided":
        said = f"undecided: {said}; {what_would_do(found, gate)}"
    return Verdict(
        promote=outcome == "promote",
        reasons=found.rules,
        sentence=said,
        challenger=contender.version,
        champion=holder.version if holder else None,
        opponent=f"champion {holder.reference}" if holder else BASELINE,
        prompts=found.prompts,
        mode=gate.mode,
        outcome=outcome,
        slices=found.slices,
        look=look.number,
        error=error,
        detectable=found.detectable,
        prompts_wanted=found.prompts_wanted,
        conditions=look.conditions,
    )


def what_would_do(found: Comparison, gate: Gate) -> str:
    """Say of an undecided comparison what so many prompts can find, and how many would do."""
    undecided, said = [rule for rule in found.rules if rule.verdict == "undecided"], []
    if any(rule.name in WINS for rule in undecided):
        can = "no win rate" if found.detectable is None else f"a win rate of {found.detectable:.3f} or more"
        wanted = f"{found.prompts_wanted:,}" if found.prompts_wanted else "more than 100,000"
        said = [
            f"{found.prompts} prompts find {can} with {gate.power:.0%} power",
            f"a gain of {gate.smallest_effect:g} needs {wanted}",
        ]
    for rule in undecided:
        more = _prompts_to_fit(rule, found.prompts)
        if more:
            said.append(f"{rule.name} needs some {more:,}")
    return f"{', '.join(said) or 'more prompts would tell'} (evaluate.test_prompts)"


def _prompts_to_fit(rule: Rule, prompts: int) -> int | None:
    """Prompts with which an interval would clear its threshold if the value stayed: its width falls as 1/sqrt(n)."""
    end = rule.low if rule.direction == "above" else rule.high
    if rule.name in WINS or rule.value is None or end is None:
        return None
    room = rule.value - rule.threshold if rule.direction == "above" else rule.threshold - rule.value
    return round(prompts * ((rule.value - end) / room) ** 2) if room > 0 else None


def _weights(entry: Version) -> str:
    return f"{entry.stage}:{entry.output_md5}"


def _unlooked(contender: Version, holder: Version | None, gate: Gate, *, promote: bool, sentence: str) -> Verdict:
    """Return a verdict for which nothing had to be compared."""
    return Verdict(
        promote=promote,
        reasons=(),
        sentence=sentence,
        challenger=contender.version,
        champion=holder.version if holder else None,
        opponent=f"champion {holder.reference}" if holder else BASELINE,
        prompts=0,
        mode=gate.mode,
        outcome="promote" if promote else "refuse",
    )
