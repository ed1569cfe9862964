import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.collection import (
    Asked,
    Collection,
    Label,
    Plan,
    chosen_prompts,
    collect,
    folder_digest,
    label_by_endpoint,
    label_by_rubric,
    label_by_score,
)
from rlhf.data import rubric
from rlhf.data.detect import detect
from rlhf.data.intake import Row, read
from rlhf.errors import BadInput
from rlhf.evaluation.answers import Policy
from rlhf.evaluation.chat_completions import Access
from rlhf.evaluation.endpoint import EndpointJudge
from rlhf.evaluation.judging import Scorer
from rlhf.outputs import read_jsonl, write_jsonl
from tests.rlhf.evaluation.completions_server import serving
from tests.talking_models import prompt_record, write_talking_models

PLAN = Plan(
    prompts=6, answers=3, which="all", temperature=1.0, max_new_tokens=12, seed=1, batch=8, precision="float32"
)  # fmt: skip
ORIGIN = {"policy": "sft", "judge": {"kind": "rubric"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talking_models(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def policy(root: Path) -> Policy:
    return Policy.load(root / "data/models/sft", device=torch.device("cpu"))


def records(root: Path) -> list[dict[str, Any]]:
    return list(read_jsonl(root / "data/validated/prompts/train.jsonl"))


def collected(root: Path, policy: Policy, work: Path, label: Label = label_by_rubric, **changes: Any) -> Collection:
    plan = replace(PLAN, **changes)
    return collect(policy, records(root), plan, label, annotator="someone", origin=ORIGIN, work=work)


def test_pairs_are_labelled_by_the_rubric(root: Path, policy: Policy, tmp_path: Path) -> None:
    found = collected(root, policy, tmp_path)
    assert found.counts["prompts"] == 6
    assert found.counts["answers"] == 18
    assert found.counts["pairs"] == len(found.rows) > 3
    for row in found.rows:
        assert row["response_a"] != row["response_b"]
        first, second = (rubric.judge(row["meta"], row[name]).points for name in ("response_a", "response_b"))
        assert row["label"] == (0.5 if first == second else float(first > second))
        assert "score_a" not in row  # no record carries the rubric's scores
        assert row["annotator"] == "someone"
        assert row["collected"] == {
            **ORIGIN, "temperature": 1.0, "max_new_tokens": 12, "seed": 1, "answers": 3,
            "prompt_id": row["collected"]["prompt_id"],
        }  # fmt: skip
    assert found.gold_accuracy == 1.0


def test_one_seed_gives_the_same_bytes_and_another_seed_others(root: Path, policy: Policy, tmp_path: Path) -> None:
    texts = []
    for number, seed in enumerate((1, 1, 2)):
        file = tmp_path / f"{number}.jsonl"
        write_jsonl(file, collected(root, policy, tmp_path / str(number), seed=seed).rows)
        texts.append(file.read_bytes())
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_answers_of_an_interrupted_run_are_used_again(root: Path, policy: Policy, tmp_path: Path) -> None:
    whole = collected(root, policy, tmp_path / "whole")
    part = tmp_path / "part"
    part.mkdir()
    (part / "answers-0.jsonl").write_bytes((tmp_path / "whole/answers-0.jsonl").read_bytes())
    changed = [{**row, "text": "Nobody says that.", "ended": True} for row in read_jsonl(part / "answers-0.jsonl")]
    write_jsonl(part / "answers-0.jsonl", changed)
    again = collected(root, policy, part)
    assert any(row["response_a"] == "Nobody says that." for row in again.rows)
    assert (part / "answers-1.jsonl").read_bytes() == (tmp_path / "whole/answers-1.jsonl").read_bytes()
    assert whole.counts["answers"] == again.counts["answers"]


def test_best_and_worst_is_at_most_one_pair_a_prompt(root: Path, policy: Policy, tmp_path: Path) -> None:
    found = collected(root, policy, tmp_path, which="best_worst")
    ids = [row["collected"]["prompt_id"] for row in found.rows]
    assert len(ids) == len(set(ids)) == 6 - found.counts["prompts_without_a_pair"]
    assert found.counts["pairs_called_a_tie"] == 0


def test_answers_that_are_not_all_text_are_left_out_and_counted(root: Path, policy: Policy, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for number, text in enumerate(["A broken \ufffd answer.", "A whole answer.", "Another answer."]):
        write_jsonl(work / f"answers-{number}.jsonl", [{"text": text, "ended": True}] * 6)
    found = collected(root, policy, work)
    assert found.counts["with_lost_characters"] == 6
    assert (found.counts["cut"], found.counts["empty_or_repeated"]) == (0, 0)
    assert {(row["response_a"], row["response_b"]) for row in found.rows} == {("A whole answer.", "Another answer.")}


def test_cut_answers_stand_in_no_pair(root: Path, policy: Policy, tmp_path: Path) -> None:
    found = collected(root, policy, tmp_path, max_new_tokens=1)
    assert found.rows == []
    assert sum(found.counts[name] for name in ("cut", "with_lost_characters", "empty_or_repeated")) == 18
    assert found.gold_accuracy is None


def test_a_model_labels_by_its_scores(root: Path, policy: Policy, tmp_path: Path) -> None:
    scorer = Scorer.load(root / "data/models/judge", device=torch.device("cpu"), batch=4, precision="float32")
    found = collected(root, policy, tmp_path, label_by_score(scorer))
    assert found.rows
    for row in found.rows:
        assert row["label"] == float(row["score_a"] > row["score_b"])
        texts = [row["response_a"], row["response_b"]]
        wanted = scorer.score_texts([row["prompt"]] * 2, texts)
        assert [row["score_a"], row["score_b"]] == pytest.approx(wanted, abs=1e-5)


def test_an_endpoint_labels_and_its_failures_give_no_pair(root: Path, policy: Policy, tmp_path: Path) -> None:
    def choose(a: str, b: str, number: int) -> str:
        return "?" if "refund" in a + b else f"Verdict: {'A' if a < b else 'B'}"

    with serving(choose) as server:
        judge = EndpointJudge(Access(url=server.url, model="m"), work=tmp_path)
        found = collected(root, policy, tmp_path, label_by_endpoint(judge))
    assert found.rows
    assert found.counts["unparsed"] > 0
    assert found.counts["questions"] == 2 * found.counts["comparisons"] + found.counts["unparsed"]
    assert found.counts["prompt_tokens"] == 10 * found.counts["questions"]
    for row in found.rows:
        assert "refund" not in row["response_a"] + row["response_b"]
        assert row["label"] == float(row["response_a"] < row["response_b"])


def test_rows_are_read_back_as_pairs_with_their_origin(root: Path, policy: Policy, tmp_path: Path) -> None:
    found = collected(root, policy, tmp_path)
    file = tmp_path / "mine.jsonl"
    write_jsonl(file, found.rows)
    rows = list(read(file, "mine.jsonl", detect(file, None)))
    assert len(rows) == len(found.rows)
    for row, raw in zip(rows, found.rows, strict=True):
        assert isinstance(row, Row)
        assert row.kind == "pair"
        assert row.record["meta"] == {**raw["meta"], "collected": raw["collected"]}
        assert rubric.applies(row.record["meta"])
        assert row.record["label"] == max(raw["label"], 1 - raw["label"])
        assert row.record["chosen"] == raw["response_a" if raw["label"] >= 0.5 else "response_b"]


def test_more_prompts_ask_those_of_a_smaller_run_first(root: Path, policy: Policy) -> None:
    few, many = (chosen_prompts(records(root), policy, replace(PLAN, prompts=count)) for count in (4, 12))
    assert many[:4] == few
    assert {record["id"] for record in many} == {record["id"] for record in records(root)}
    other = chosen_prompts(records(root), policy, replace(PLAN, seed=2))
    assert [record["id"] for record in other] != [record["id"] for record in many[:6]]
    assert chosen_prompts(reversed(records(root)), policy, PLAN) == chosen_prompts(records(root), policy, PLAN)


def test_prompts_without_room_for_an_answer_are_left_out(root: Path, policy: Policy, tmp_path: Path) -> None:
    long = {**prompt_record(500), "prompt": [{"role": "user", "content": "lamp " * 200}]}
    assert chosen_prompts([long, *records(root)], policy, replace(PLAN, prompts=50)) == chosen_prompts(
        records(root), policy, replace(PLAN, prompts=50)
    )
    with pytest.raises(BadInput, match="no training prompt leaves 12 tokens"):
        collect(policy, [long], PLAN, label_by_rubric, annotator="x", origin={}, work=tmp_path)


def test_the_rubric_refuses_prompts_without_facts() -> None:
    asked = Asked({"id": "q", "prompt": [], "meta": {"name": "Olga"}}, ["Yes."])
    with pytest.raises(BadInput, match="prompt q: carries no facts"):
        label_by_rubric([asked], "all")


def test_a_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps({"x": 1}))
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    (tmp_path / "b" / ".lock").write_text("hidden files do not count")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    (tmp_path / "b" / "config.json").rename(tmp_path / "b" / "other.json")
    assert folder_digest(tmp_path / "a") != folder_digest(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [{"prompts": 0}, {"answers": 1}, {"which": "some"}, {"temperature": 0.0}, {"max_new_tokens": 0}, {"seed": -1}],
)
def test_plans_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(PLAN, **change)
