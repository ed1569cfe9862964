"""Which answers the gate compares, and that it never compares across prompts."""

import math
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import BadInput
from tasks.gate_evaluation import Evaluated, answers_of, load_evaluation
from tasks.lock_file import LockedStage
from tasks.registry import Version

DEPS = {"data/models/sft": "s.dir", "data/models/ppo": "p.dir", "data/models/judge": "j.dir"}
SETTINGS = {"temperature": 1.0, "max_new_tokens": 8, "batch": 4, "precision": "float32", "tie_tolerance": 0.01}


def row(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "id": f"p{number}", "prompt": [{"role": "user", "content": f"Order {number}?"}], "response": "a b c d a b c d",
        "ended": True, "tokens": 9, "kl": 0.5, "judge": 1.0, "gold": None, "meta": {"intent": "late"}, **changed,
    }  # fmt: skip


def evaluated(ppo: list[dict[str, Any]] | None = None, *, deps: dict[str, str] = DEPS, seed: int = 1) -> Evaluated:
    rows = {"sft": [row(1), row(2)], "ppo": [row(1), row(2)] if ppo is None else ppo}
    return Evaluated(
        locked=LockedStage(name="evaluate", cmd="", deps=deps, params={"evaluate": SETTINGS, "seed": seed}),
        rows={name: {found["id"]: found for found in some} for name, some in rows.items()},
    )


def entry(md5: str = "p.dir") -> Version:
    return Version(
        model="policy", version="2", stage="ppo", output_md5=md5, aliases=(), created=0.0, run_id="", tags={}
    )  # fmt: skip


def test_the_evaluation_s_answers_are_taken_as_they_are(tmp_path: Path) -> None:
    ours = answers_of(tmp_path, entry(), evaluated([row(2, judge=2.0), row(1, refused=True)]))
    assert [answer.judge for answer in ours] == [1.0, 2.0]  # by prompt, whatever the order of the file
    assert ours[0].repetition == pytest.approx(1 / 5)  # five 4-grams, the last of which repeats the first
    assert (ours[0].meta, ours[0].refused, ours[1].refused) == ({"intent": "late"}, True, None)
    assert len(answers_of(tmp_path, None, evaluated())) == 2


def test_only_the_same_weights_on_the_same_prompts_are_covered() -> None:
    assert evaluated().covers("ppo", "p.dir")
    assert not evaluated().covers("ppo", "q.dir")
    assert not evaluated().covers("dpo", "p.dir")
    assert not evaluated([row(1)]).covers("ppo", "p.dir")  # one prompt less
    other = [row(1), row(2, prompt=[{"role": "user", "content": "Another question?"}])]
    assert not evaluated(other).covers("ppo", "p.dir")  # the same ids, other prompts


def test_the_digest_changes_with_all_that_answers_depend_on() -> None:
    first = evaluated().digest()
    assert evaluated().digest() == first
    assert evaluated([row(1, judge=5.0), row(2)]).digest() == first  # answers are not conditions
    others = [
        evaluated(seed=2).digest(),
        evaluated(deps={**DEPS, "data/models/judge": "k.dir"}).digest(),
        evaluated().digest("ppo", "p.dir"),
    ]
    assert len({first, *others}) == 4


@pytest.mark.parametrize(("measure", "value"), [("judge", math.nan), ("kl", math.inf), ("gold", math.nan)])
def test_a_score_that_is_no_number_is_named(tmp_path: Path, measure: str, value: float) -> None:
    broken = evaluated([row(1), row(2, **{measure: value})])
    with pytest.raises(BadInput, match=f"{measure} of the answer to prompt p2 is {value}, wanted a finite number"):
        answers_of(tmp_path, entry(), broken)


def test_generated_answers_that_lack_a_prompt_are_refused(tmp_path: Path) -> None:
    found = evaluated()
    folder = tmp_path / ".ratchet/tmp/gate" / found.digest("ppo", "old.dir")
    folder.mkdir(parents=True)
    (folder / "answers.jsonl").write_text(
        '{"id": "p1", "response": "x", "ended": true, "tokens": 1, "kl": null, "judge": 0.0, "gold": null}\n'
    )
    with pytest.raises(BadInput, match="1 of 2 test prompts have no answer, the first is p2; remove the file"):
        answers_of(tmp_path, entry("old.dir"), found)


def test_without_an_evaluation_one_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"answers\.jsonl: not there as dvc\.lock records it; `ratchet run --until"):
        load_evaluation(tmp_path)
