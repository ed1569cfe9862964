"""Two policies on the same prompts, judged where there is a judge: for people who compare models by reading."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.evaluation.answers import Answer, Policy, Sampling, sample
from rlhf.evaluation.judging import Scorer, gold_score

TIE = 1e-4
"""Judge scores this close are a tie: equal answers differ by less, through the padding they are batched with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What one policy answered."""

    response: str
    ended: bool
    tokens: int
    judge: float | None
    """Score by the judge, standard deviations; None without a judge."""
    gold: float | None
    """Points by the rubric; None where the prompt does not carry its facts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Duel:
    """One prompt with both answers."""

    id: str
    prompt: Sequence[Mapping[str, str]]
    a: Side
    b: Side

    @property
    def winner(self) -> str | None:
        """By the judge "a", "b" or "tie"; None without a judge."""
        if self.a.judge is None or self.b.judge is None:
            return None
        if abs(self.a.judge - self.b.judge) <= TIE:
            return "tie"
        return "a" if self.a.judge > self.b.judge else "b"


def compare(
    a: Policy, b: Policy, prompts: Sequence[Mapping[str, Any]], sampling: Sampling, *, judge: Scorer | None
) -> list[Duel]:
    """Let two policies answer the same prompts.

    Args:
        a: the first policy.
        b: the second one; the tokens of the two may differ.
        prompts: prompt records with id, prompt and meta.
        sampling: how answers are drawn; the two sides draw independently.
        judge: scores the texts of both; None for no verdict.

    Returns:
        One duel per prompt, in the order given.
    """
    ours, theirs = sample(a, prompts, sampling, name="a"), sample(b, prompts, sampling, name="b")
    return [
        Duel(id=str(record["id"]), prompt=record["prompt"], a=one, b=other)
        for record, one, other in zip(prompts, _sides(ours, judge), _sides(theirs, judge), strict=True)
    ]


def _sides(answers: Sequence[Answer], judge: Scorer | None) -> list[Side]:
    scores: list[float | None] = [None] * len(answers)
    if judge is not None:
        # As text: the judge need not share the policy's tokens.
        texts, ended = [answer.text for answer in answers], [answer.ended for answer in answers]
        scores = [*judge.score_texts([answer.prompt["prompt"] for answer in answers], texts, ended=ended)]
    return [
        Side(
            response=answer.text,
            ended=answer.ended,
            tokens=len(answer.ids),
            judge=score,
            gold=gold_score(answer.prompt["meta"], answer.text, ended=answer.ended),
        )
        for answer, score in zip(answers, scores, strict=True)
    ]
