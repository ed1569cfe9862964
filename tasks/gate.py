"""The gate: is the challenger better than the champion, on the same frozen test prompts?

What was measured comes from the evaluation where that looked at the very weights in question, and is generated anew
for every other version, on the same prompts, with the same decoding and judge.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput, StageFailed
from rlhf.outputs import atomic_writer, read_jsonl, write_jsonl
from tasks.gate_answers import Request, as_json
from tasks.gate_rules import Answer, Rule, RuleSpec, Verdict, apply_rules, measure, passes
from tasks.history import Move
from tasks.lock_file import LockedStage, read_lock
from tasks.process import run_supervised
from tasks.registry import Version, challenger, champion, promote, version
from tasks.registry_config import Gate, load_registry_config
from tasks.settings import environment, tmp_dir
from tasks.stage_outputs import EVALUATE, MODELS, matches_lock
from tasks.weights import registered_weights

__all__ = ["Decision", "Rule", "RuleSpec", "Verdict", "decide_and_promote", "judge_challenger"]

ANSWERS = "data/evaluation/answers.jsonl"
BASELINE = "sft"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What came of a challenger."""

    verdict: Verdict | None
    """None when the gate is off or there is no challenger."""
    move: Move | None
    """The champion's move, None when it stays."""
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """The evaluation in the work tree, which the recorded one is."""

    locked: LockedStage
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Policy -> prompt id -> row, on the test prompts."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Parameters of the evaluation."""
        found = self.locked.params.get(EVALUATE)
        return found if isinstance(found, Mapping) else {}

    def covers(self, stage: str, md5: str) -> bool:
        """Tell whether these very weights were evaluated."""
        return stage in self.rows and self.locked.deps.get(MODELS + stage) == md5


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
    gate = load_registry_config(root).gate
    contender = challenger(root) if number is None else version(root, number)
    if contender is None:
        raise BadInput("gate: nothing is @challenger; run `ratchet run` or `ratchet publish`, or name a version")
    holder = champion(root)
    if holder is not None and holder.output_md5 == contender.output_md5 and holder.stage == contender.stage:
        said = (
            f"{contender.reference} is the champion already"
            if holder.version == contender.version
            else (f"{contender.reference} has the same weights as the champion {holder.reference}")
        )
        return _verdict(contender, holder, gate, promote=False, sentence=said)
    if holder is None and gate.first_champion == "any":
        return _verdict(contender, None, gate, promote=True, sentence="there is no champion, and any may be the first")
    evaluated = load_evaluation(root)
    ids = sorted(evaluated.rows[BASELINE])
    ours = _answers(root, contender, evaluated, ids)
    theirs = _of_rows(evaluated.rows[BASELINE], ids) if holder is None else _answers(root, holder, evaluated, ids)
    measured = measure(
        ours,
        theirs,
        tolerance=float(evaluated.settings.get("tie_tolerance", 0.0)),
        resamples=gate.resamples,
        level=gate.confidence,
        seed=gate.seed,
    )
    rules = apply_rules(gate.rules, measured)
    failed = [rule.sentence for rule in rules if not rule.ok and not rule.soft]
    against = f"champion {holder.reference}" if holder else "sft (there is no champion yet)"
    good = passes(rules)
    warned = [rule.sentence for rule in rules if not rule.ok and rule.soft]
    holds = "every rule that binds holds, but " if warned else "every rule holds"
    why = holds + "; ".join(warned) if good else "; ".join(failed)
    return _verdict(
        contender,
        holder,
        gate,
        promote=good,
        sentence=f"{contender.reference} ({contender.stage}) against {against} on {len(ids)} prompts: {why}",
        rules=rules,
        prompts=len(ids),
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
    if gate.mode == "off":
        move = promote(root, contender.version, reason="the gate is off", evidence=None)
        return Decision(verdict=None, move=move, sentence=f"{contender.reference} is champion; the gate is off")
    verdict = judge_challenger(root)
    if not verdict.promote:
        return Decision(verdict=verdict, move=None, sentence=f"not promoted: {verdict.sentence}")
    if gate.mode == "advise":
        advice = f"`ratchet promote {contender.version} --reason ...` would make it champion: {verdict.sentence}"
        return Decision(verdict=verdict, move=None, sentence=advice)
    move = promote(root, contender.version, reason=verdict.sentence, evidence=evidence_of(verdict))
    return Decision(verdict=verdict, move=move, sentence=f"promoted: {verdict.sentence}")


def evidence_of(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as the history keeps it."""
    return asdict(verdict)


def load_evaluation(root: Path) -> Evaluated:
    """Read the evaluation's answers to the test prompts.

    Raises:
        BadInput: there is none, or it is not the recorded one.
    """
    locked = read_lock(root).get(EVALUATE)
    if locked is None or not matches_lock(root, locked, ANSWERS):
        raise BadInput(f"{ANSWERS}: not there as dvc.lock records it; `ratchet run --until {EVALUATE}` makes it")
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in read_jsonl(root / ANSWERS):
        if row["split"] == "test":
            rows.setdefault(row["policy"], {})[str(row["id"])] = row
    if not rows.get(BASELINE):
        raise BadInput(f"{ANSWERS}: no answers of {BASELINE} to test prompts, which every comparison needs")
    return Evaluated(locked=locked, rows=rows)


def _answers(root: Path, entry: Version, evaluated: Evaluated, ids: Sequence[str]) -> list[Answer]:
    """Return a version's answers: the evaluation's where it looked at these weights, else generated or cached."""
    if evaluated.covers(entry.stage, entry.output_md5):
        return _of_rows(evaluated.rows[entry.stage], ids)
    prompts = [
        {"id": row["id"], "prompt": row["prompt"], "meta": row["meta"]}
        for row in (evaluated.rows[BASELINE][name] for name in ids)
    ]
    settings, deps = evaluated.settings, evaluated.locked.deps
    seed = evaluated.locked.params.get("seed", 0)
    depends = [entry.stage, entry.output_md5, deps.get(MODELS + "judge"), deps.get(MODELS + BASELINE)]
    decoding = {name: settings[name] for name in ("temperature", "max_new_tokens", "batch", "precision")}
    decoding["matmul"] = settings.get("matmul", "native")  # an older evaluation has no such key
    key = hashlib.sha256(json.dumps([depends, prompts, decoding, seed], sort_keys=True).encode()).hexdigest()[:32]
    folder = tmp_dir(root) / "gate" / key
    found = folder / "answers.jsonl"
    if not found.is_file():
        write_jsonl(folder / "prompts.jsonl", prompts)
        request = Request(
            weights=str(registered_weights(root, entry.model, number=entry.version)),
            name=entry.stage,
            judge=str(root / MODELS / "judge"),
            reference=str(root / MODELS / BASELINE),
            prompts=str(folder / "prompts.jsonl"),
            seed=int(seed),
            **decoding,
        )
        _generate(root, folder, request, entry)
    return _of_rows({str(row["id"]): row for row in read_jsonl(found)}, ids)


def _generate(root: Path, folder: Path, request: Request, entry: Version) -> None:
    """Run the child process that generates and scores."""
    with atomic_writer(folder / "request.json") as stream:
        stream.write(as_json(request))
    env = environment(root)
    package = str(Path(__file__).resolve().parent.parent)
    env["PYTHONPATH"] = ":".join(filter(None, [package, env.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "tasks.gate_answers", str(folder / "request.json")]
    ended = run_supervised(command, cwd=root, env=env, on_line=lambda line: None)
    if ended.exit_code:
        last = next((line for line in reversed(ended.lines) if line.strip()), "no message")
        raise StageFailed(f"gate: answers of {entry.reference} could not be generated: {last.removeprefix('error: ')}")


def _of_rows(rows: Mapping[str, Mapping[str, Any]], ids: Sequence[str]) -> list[Answer]:
    missing = [name for name in ids if name not in rows]
    if missing:
        raise BadInput(f"gate: {len(missing)} of {len(ids)} test prompts have no answer, the first is {missing[0]}")
    return [
        Answer(
            judge=float(rows[name]["judge"]),
            tokens=int(rows[name]["tokens"]),
            ended=bool(rows[name]["ended"]),
            kl=rows[name]["kl"],
            gold=rows[name]["gold"],
        )
        for name in ids
    ]


def _verdict(
    contender: Version,
    holder: Version | None,
    gate: Gate,
    *,
    promote: bool,
    sentence: str,
    rules: tuple[Rule, ...] = (),
    prompts: int = 0,
) -> Verdict:
    return Verdict(
        promote=promote,
        reasons=rules,
        sentence=sentence,
        challenger=contender.version,
        champion=holder.version if holder else None,
        opponent=f"champion {holder.reference}" if holder else BASELINE,
        prompts=prompts,
        mode=gate.mode,
    )
