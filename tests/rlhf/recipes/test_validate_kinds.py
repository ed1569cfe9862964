"""Rankings, judgements and prompts unlike the others, through the whole stage."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from tests.rlhf.recipes.validation import CONFIG, pairs, validate, write


def test_own_prompts_can_be_marked_as_unlike(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "data.jsonl", pairs(60))
    marked = [{"prompt": f"elsewhere {n}", "unlike": True} for n in range(5)]
    write(tmp_path / "raw" / "other.jsonl", [*marked, {"prompt": "question 3", "unlike": True}])
    found = validate(replace(CONFIG, files=("*.jsonl",)), tmp_path / "raw", tmp_path)
    assert [record["prompt"][-1]["content"] for record in found.records("prompts", "unlike")] == [
        f"elsewhere {n}" for n in range(5)
    ]
    # They are no prompts to train on, so those of the pairs still are; one of these cannot be unlike them.
    assert {record["prompt"][-1]["content"].split()[0] for record in found.every("prompts")} == {"question"}
    assert [row["reason"] for row in found.quarantine] == ["marked as unlike, but among the others"]
    assert found.metrics["rows"]["prompts_not_unlike"] == 1
    assert found.metrics["prompts_in_two_splits"] == 0


def test_rankings_alone_train_everything(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "responses": ["best", "good", "bad"], "scores": [3, 2, 1]} for n in range(60)]
    write(tmp_path / "raw" / "data.jsonl", rows)
    found = validate(CONFIG, tmp_path / "raw", tmp_path)
    rankings, derived = found.every("rankings"), found.every("pairs")
    for_judge = found.records("judge_rankings", "train")
    assert {record["meta"]["ranking"] for record in derived} == {record["id"] for record in rankings}
    assert len(derived) == 3 * len(rankings)
    judged = {json.dumps(record["prompt"]) for record in found.records("judge_pairs", "train")}
    assert len(for_judge) == 60 - len(rankings) > 0
    assert len(found.records("judge_pairs", "train")) == 3 * len(for_judge)
    assert judged == {json.dumps(record["prompt"]) for record in for_judge}
    assert not judged & {json.dumps(record["prompt"]) for record in rankings}
    assert found.records("judge_rankings", "test") == found.records("rankings", "test")
    assert {record["response"] for record in found.every("demonstrations")} == {"best"}
    assert found.metrics["rankings"] == {"rows": len(rankings), "responses": 3.0}
    assert found.metrics["prompts_in_two_splits"] == 0


def test_judgements_stay_away_from_the_prompts_of_the_judge(tmp_path: Path) -> None:
    write(tmp_path / "raw" / "data.jsonl", pairs(60))
    rows = [{"prompt": f"question {n}", "completion": f"other {n}", "label": n % 2 == 0} for n in range(80)]
    write(tmp_path / "raw" / "kto.jsonl", rows)
    found = validate(replace(CONFIG, files=("*.jsonl",)), tmp_path / "raw", tmp_path)
    judged = {json.dumps(record["prompt"]) for record in found.records("judge_pairs", "train")}
    kept = found.every("judgements")
    assert not judged & {json.dumps(record["prompt"]) for record in found.records("judgements", "train")}
    assert len(kept) == 80 - len(judged)
    assert found.metrics["rows"]["judgements_on_judge_prompts"] == len(judged) > 0
    assert all(record["good"] == (int(record["response"].split()[1]) % 2 == 0) for record in kept)


def test_judgements_alone_say_what_they_are_good_for(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "completion": "answer", "label": n % 2 == 0} for n in range(60)]
    write(tmp_path / "raw" / "data.jsonl", rows)
    with pytest.raises(BadInput, match=r"60 judgements of single answers.*dpo\.objective: kto.*add a file"):
        validate(CONFIG, tmp_path / "raw", tmp_path / "out")


def test_records_of_every_kind_survive_being_read_again(tmp_path: Path) -> None:
    rankings = [{"prompt": f"r {n}", "responses": ["a", "b", "c"], "scores": [1, 3, 1]} for n in range(60)]
    judgements = [{"prompt": f"j {n}", "completion": "a", "label": n % 2} for n in range(60)]
    for name, rows in (("pairs", pairs(60)), ("rankings", rankings), ("judgements", judgements)):
        write(tmp_path / "raw" / f"{name}.jsonl", rows)
    first = validate(replace(CONFIG, files=("*.jsonl",)), tmp_path / "raw", tmp_path / "first")
    write(tmp_path / "again" / "judgements.jsonl", first.every("judgements"))
    write(tmp_path / "again" / "rankings.jsonl", [*first.every("rankings"), *first.records("judge_rankings", "train")])
    write(tmp_path / "again" / "pairs.jsonl", [*first.every("pairs"), *first.records("judge_pairs", "train")])
    second = validate(replace(CONFIG, files=("*.jsonl",)), tmp_path / "again", tmp_path / "second")
    for name in ("rankings", "judge_rankings", "judgements"):
        fields = ("id", "prompt", "responses", "ranks", "scores", "response", "good", "annotator")
        assert [[record.get(field) for field in fields] for record in second.every(name)] == [
            [record.get(field) for field in fields] for record in first.every(name)
        ]
    assert json.dumps(first.every("rankings")[0]["ranks"]) == "[2, 1, 2]"
