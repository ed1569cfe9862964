from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from rlhf.outputs import read_jsonl, write_jsonl
from tasks.gate_answers import Request, answer, as_json, main

pytest_plugins = ["tests.registry_fixtures"]


@pytest.fixture
def request_for(unpublished: Path, tmp_path: Path) -> Request:
    prompts = [
        {"id": f"p{number}", "prompt": [{"role": "user", "content": f"Hello {number}"}], "meta": {}}
        for number in range(3)
    ]
    write_jsonl(tmp_path / "prompts.jsonl", prompts)
    models = unpublished / "data/models"
    return Request(
        weights=str(models / "ppo"), name="ppo", judge=str(models / "judge"), reference=str(models / "sft"),
        prompts=str(tmp_path / "prompts.jsonl"), temperature=1.0, max_new_tokens=5, batch=2,
        precision="float32", matmul="native", seed=1,
    )  # fmt: skip


def test_answers_repeat_and_carry_judge_and_divergence(request_for: Request, tmp_path: Path) -> None:
    rows = answer(request_for)
    assert [row["id"] for row in rows] == ["p0", "p1", "p2"]
    assert all(row["kl"] > 0 and 1 <= row["tokens"] <= 5 and row["gold"] is None for row in rows)
    same = answer(replace(request_for, batch=3))
    assert [row["response"] for row in same] == [row["response"] for row in rows]
    assert all(row["kl"] == 0 for row in answer(replace(request_for, weights=request_for.reference)))
    (tmp_path / "request.json").write_text(as_json(request_for))
    assert main([str(tmp_path / "request.json")]) == 0
    assert list(read_jsonl(tmp_path / "answers.jsonl")) == rows


def test_a_missing_judge_is_one_sentence(
    request_for: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = replace(request_for, judge=str(tmp_path / "nothing"))
    with pytest.raises(BadInput):
        answer(broken)
    (tmp_path / "request.json").write_text(as_json(broken))
    assert main([str(tmp_path / "request.json")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
