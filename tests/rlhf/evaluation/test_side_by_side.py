"""Two policies on the same prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.evaluation.answers import Policy, Sampling
from rlhf.evaluation.judging import Scorer
from rlhf.evaluation.side_by_side import Duel, Side, compare

CPU = torch.device("cpu")
SAMPLING = Sampling(temperature=1.0, max_new_tokens=5, batch=4, precision="float32", seed=7)
FACTS = {"action": "refund", "name": "Amara", "order": "201", "item": "desk"}
PROMPTS = [
    {"id": name, "prompt": [{"role": "user", "content": text}], "meta": meta}
    for name, text, meta in (("x", "My lamp is broken.", FACTS), ("y", "Order 201", {}))
]
SIDE = Side(response="", ended=True, tokens=1, judge=1.0, gold=None)


def test_both_answer_every_prompt_and_are_judged(folders: dict[str, Path]) -> None:
    a, b = (Policy.load(folders[name], device=CPU) for name in ("sft", "other"))
    judge = Scorer.load(folders["judge"], device=CPU, batch=2, precision="float32")
    duels = compare(a, b, PROMPTS, SAMPLING, judge=judge)
    assert [duel.id for duel in duels] == ["x", "y"]
    assert all(duel.winner in ("a", "b", "tie") for duel in duels)
    assert isinstance(duels[0].a.gold, float)
    assert duels[1].a.gold is None
    unjudged = compare(a, b, PROMPTS, SAMPLING, judge=None)
    assert [duel.winner for duel in unjudged] == [None, None]
    assert [duel.a.response for duel in unjudged] == [duel.a.response for duel in duels]


@pytest.mark.parametrize(("theirs", "winner"), [(0.5, "a"), (1.5, "b"), (1.00005, "tie")])
def test_winner_by_judge(theirs: float, winner: str) -> None:
    assert Duel(id="x", prompt=[], a=SIDE, b=replace(SIDE, judge=theirs)).winner == winner
