"""Which answers are worth reading: for a few held-out prompts, what each policy wrote, side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

BASELINE = "sft"
FIRST = ("sft", "dpo", "ppo")
"""Order of the columns; other policies follow by name."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One prompt with the answer of every policy."""

    prompt: Sequence[Mapping[str, str]]
    answers: Sequence[Row]
    """Rows of `answers.jsonl`, the baseline first."""


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts chosen for one reason."""

    title: str
    reason: str
    comparisons: Sequence[Comparison]


def choose_samples(rows: Iterable[Row], *, selected: str, each: int) -> list[Group]:
    """Choose prompts to read: the best and worst answers of a policy, its largest changes from SFT, and random ones.

    Args:
        rows: answers of one split; the second sample of the baseline (`sft_again`) is ignored.
        selected: the policy whose answers decide what is shown.
        each: prompts of each kind; none is shown twice.

    Returns:
        Groups in reading order, without empty ones; random prompts are the same in every run.
    """
    by_prompt: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["policy"] != f"{BASELINE}_again":
            by_prompt.setdefault(str(row["id"]), {})[str(row["policy"])] = row
    complete = {key: answers for key, answers in by_prompt.items() if {BASELINE, selected} <= set(answers)}
    measure = (
        "gold" if all(row["gold"] is not None for found in complete.values() for row in found.values()) else "judge"
    )

    def score(key: str) -> float:
        return float(complete[key][selected][measure])

    def change(key: str) -> float:
        return score(key) - float(complete[key][BASELINE][measure])

    wanted: list[tuple[str, str, Callable[[str], Any]]] = [
        ("Largest gains", f"where {selected} improves most on SFT by {measure}", lambda key: -change(key)),
        ("Largest losses", f"where {selected} falls furthest behind SFT by {measure}", change),
        ("Best answers", f"highest {measure} score of {selected}", lambda key: -score(key)),
        ("Worst answers", f"lowest {measure} score of {selected}", score),
        ("Random prompts", "drawn without looking at any score", _shuffled),
    ]
    left, groups = sorted(complete), []
    for title, reason, key in wanted:
        chosen = sorted(left, key=key)[:each]
        left = [prompt for prompt in left if prompt not in chosen]
        if chosen:
            groups.append(Group(title, reason, [_comparison(complete[prompt]) for prompt in chosen]))
    return groups


def _comparison(answers: Mapping[str, Row]) -> Comparison:
    order = [name for name in FIRST if name in answers] + sorted(set(answers) - set(FIRST))
    return Comparison(answers[order[0]]["prompt"], [answers[name] for name in order])


def _shuffled(prompt_id: str) -> str:
    return hashlib.sha256(prompt_id.encode()).hexdigest()
