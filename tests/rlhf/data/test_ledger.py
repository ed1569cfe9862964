import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.entries import FOLDERS, Placement
from rlhf.data.intake import Row
from rlhf.data.ledger import Ledger
from rlhf.data.records import Kind, Message, demonstration, encode, judgement, pair, ranking, with_origin
from rlhf.data.splits import Split
from rlhf.data.workers import Workers


def ask(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def split_of(prompt: str) -> Split:
    """By the first letter, so that a test can choose."""
    named: dict[str, Split] = {"d": "dev", "t": "test"}
    return named.get(json.loads(prompt)[0]["content"][0], "train")


def is_for_judge(prompt: str) -> bool:
    return str(json.loads(prompt)[0]["content"]).startswith("j")


PLACEMENT = Placement(split_of, is_for_judge)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "spool", PLACEMENT, workers=Workers(1)) as opened:
        yield opened


def row(kind: Kind, content: dict[str, Any], *, identity: str | None = None, line: int = 1) -> Row:
    record = with_origin(kind, content, source="f", identity=identity, meta={"n": line})
    return Row(kind, record, encode(record), "f", line)


def written(ledger: Ledger, folder: str, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    counts = ledger.write(folder, tmp_path / "out" / folder)
    found = {}
    for split in counts:
        lines = (tmp_path / "out" / folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        found[split] = [json.loads(line) for line in lines]
        assert len(found[split]) == counts[split]
    return found


def test_records_go_where_their_prompt_belongs(ledger: Ledger, tmp_path: Path) -> None:
    for name in ("a", "j", "d", "t"):
        assert ledger.add(row("pair", pair(ask(name), "A", "B")))
        assert ledger.add(row("demonstration", demonstration(ask(name), "A")))
    assert ledger.add(row("probe", pair(ask("x"), "A", "B")))
    prompts = {
        folder: {
            split: [r["prompt"][0]["content"] for r in rows]
            for split, rows in written(ledger, folder, tmp_path).items()
        }
        for folder in FOLDERS
    }
    assert prompts["demonstrations"] == {"train": ["a", "j"], "dev": ["d"], "test": ["t"]}
    assert prompts["pairs"] == {"train": ["a"], "dev": ["d"], "test": ["t"]}
    assert prompts["judge_pairs"] == {"train": ["j"], "dev": ["d"], "test": ["t"]}
    assert prompts["prompts"] == {"train": [], "dev": [], "test": [], "unlike": []}
    assert prompts["probes"] == {"train": [], "dev": [], "test": ["x"]}


def test_the_same_content_is_taken_once_whatever_its_id_and_place(ledger: Ledger) -> None:
    assert ledger.add(row("pair", pair(ask("a"), "A", "B"), identity="1"))
    assert not ledger.add(row("pair", pair(ask("a"), "B", "A", first_is_better=0.0), identity="2", line=9))
    assert ledger.add(row("pair", pair(ask("a"), "A", "B", annotator="kim")))
    assert ledger.add(row("pair", pair(ask("a"), "A", "B", first_is_better=0.8)))
    assert ledger.add(row("demonstration", demonstration(ask("a"), "A")))


def test_a_ranking_says_the_same_in_any_order(ledger: Ledger) -> None:
    assert ledger.add(row("ranking", ranking(ask("a"), ["A", "B"], order=[1, 2], scores=[3.0, 1.0])))
    assert not ledger.add(row("ranking", ranking(ask("a"), ["B", "A"], order=[2, 1], scores=[1.0, 3.0])))
    assert ledger.add(row("ranking", ranking(ask("a"), ["B", "A"], order=[1, 2], scores=[3.0, 1.0])))
    assert ledger.add(row("ranking", ranking(ask("a"), ["A", "B"], order=[1, 2], scores=[3.0, 2.0])))


def test_rankings_and_judgements_go_where_their_prompt_belongs(ledger: Ledger, tmp_path: Path) -> None:
    for name in ("a", "j", "d", "t"):
        ledger.add(row("ranking", ranking(ask(name), ["A", "B"], order=[1, 2])))
        ledger.add(row("judgement", judgement(ask(name), "A", good=True)))
    found = {folder: written(ledger, folder, tmp_path) for folder in ("rankings", "judge_rankings", "judgements")}
    names = {
        folder: {split: [r["prompt"][0]["content"] for r in rows] for split, rows in splits.items()}
        for folder, splits in found.items()
    }
    assert names["rankings"] == {"train": ["a"], "dev": ["d"], "test": ["t"]}
    assert names["judge_rankings"] == {"train": ["j"], "dev": ["d"], "test": ["t"]}
    # A judgement stays until it is known that the judge trains on its prompt.
    assert names["judgements"] == {"train": ["a", "j"], "dev": ["d"], "test": ["t"]}
    assert ledger.drop_judged_by_judge() == 1
    assert len(ledger.parts["judgements", "train"].kept()) == 1


def test_an_answer_that_one_person_calls_good_and_bad_is_dropped(ledger: Ledger) -> None:
    for line, (annotator, good) in enumerate([("kim", True), ("kim", False), ("lou", True)], start=1):
        ledger.add(row("judgement", judgement(ask("a"), "A", good=good, annotator=annotator), line=line))
    assert [failure.line for failure in ledger.drop_contradictions()] == [1, 2]


def unlike(content: str, line: int = 1) -> Row:
    record = with_origin("prompt", {"prompt": ask(content)}, source="f", identity=None, meta={"unlike": True})
    return Row("prompt", record, encode(record), "f", line)


def test_unlike_prompts_have_a_file_of_their_own(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(row("prompt", {"prompt": ask("a")}))
    ledger.add(unlike("u"))
    ledger.discard("prompts")
    found = written(ledger, "prompts", tmp_path)
    assert {split: len(rows) for split, rows in found.items()} == {"train": 0, "dev": 0, "test": 0, "unlike": 1}


@pytest.mark.parametrize("known", ["a", "d", "t"])
def test_a_prompt_that_is_among_the_others_is_not_unlike(ledger: Ledger, known: str) -> None:
    ledger.add(row("pair", pair(ask(known), "A", "B")))
    ledger.add(unlike(known, line=1))
    ledger.add(unlike("u", line=2))
    assert [failure.line for failure in ledger.drop_known_unlike()] == [1]
    assert len(ledger.parts["prompts", "unlike"].kept()) == 1


def test_an_id_is_used_once_in_a_folder(ledger: Ledger, tmp_path: Path) -> None:
    for content in ("A", "B"):
        ledger.add(row("demonstration", demonstration(ask("a"), content), identity="same"))
    ids = [record["id"] for record in written(ledger, "demonstrations", tmp_path)["train"]]
    assert ids[0] == "same"
    assert ids[1].startswith("same-")
    assert ledger.repeated_ids == 1


def test_one_source_that_says_both_loses_both(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(row("pair", pair(ask("a"), "A", "B", annotator="kim"), line=1))
    ledger.add(row("pair", pair(ask("a"), "B", "A", annotator="kim"), line=2))
    ledger.add(row("pair", pair(ask("b"), "A", "B"), line=3))
    ledger.add(row("pair", pair(ask("b"), "B", "A"), line=4))
    ledger.add(row("pair", pair(ask("c"), "A", "B"), line=5))
    refused = ledger.drop_contradictions()
    assert [(failure.line, failure.value) for failure in refused] == [(1, "kim"), (2, "kim"), (3, ""), (4, "")]
    assert [record["meta"]["n"] for record in written(ledger, "pairs", tmp_path)["train"]] == [5]


def test_two_people_may_disagree_and_one_may_be_unsure(ledger: Ledger) -> None:
    ledger.add(row("pair", pair(ask("a"), "A", "B", annotator="kim")))
    ledger.add(row("pair", pair(ask("a"), "B", "A", annotator="lou")))
    ledger.add(row("pair", pair(ask("a"), "A", "B", annotator="kim", first_is_better=0.5)))
    assert ledger.drop_contradictions() == []
    assert len(list(ledger.pairs())) == 3


def test_a_probe_on_a_training_prompt_is_dropped(ledger: Ledger) -> None:
    ledger.add(row("demonstration", demonstration(ask("a"), "A")))
    ledger.add(row("probe", pair(ask("a"), "A", "B"), line=1))
    ledger.add(row("probe", pair(ask("tt"), "A", "B"), line=2))
    assert [failure.line for failure in ledger.drop_known_probes()] == [1]
    assert len(ledger.parts["probes", "test"].kept()) == 1


def test_derived_records_keep_split_source_and_facts_and_are_not_repeated(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(row("pair", pair(ask("a"), "A", "B"), line=7))
    ledger.add(row("pair", pair(ask("a"), "A", "C"), line=8))
    ledger.add(row("pair", pair(ask("t"), "A", "B"), line=9))
    ledger.derive("prompt", "pairs", lambda record: [{"prompt": record["prompt"]}])
    ledger.derive("demonstration", "pairs", lambda record: [])
    found = written(ledger, "prompts", tmp_path)
    assert [(r["prompt"], r["source"], r["meta"]) for r in found["train"]] == [(ask("a"), "f", {"n": 7})]
    assert len(found["test"]) == 1
    assert written(ledger, "demonstrations", tmp_path)["train"] == []


def test_what_was_discarded_may_come_back_from_elsewhere(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add(row("demonstration", demonstration(ask("a"), "A")))
    ledger.add(row("pair", pair(ask("a"), "A", "B")))
    ledger.discard("demonstrations")
    ledger.derive("demonstration", "pairs", lambda record: [demonstration(record["prompt"], record["chosen"])])
    assert [record["response"] for record in written(ledger, "demonstrations", tmp_path)["train"]] == ["A"]


def test_a_limit_keeps_the_same_records_whatever_the_order(tmp_path: Path) -> None:
    kept = []
    for order in (range(20), reversed(range(20))):
        with Ledger(tmp_path / "spool", PLACEMENT, workers=Workers(1)) as opened:
            for number in order:
                opened.add(row("prompt", {"prompt": ask(f"a{number}")}))
            opened.limit("prompts", "train", 5)
            opened.limit("prompts", "dev", 5)
            kept.append(set(opened.parts["prompts", "train"].kept()["prompt"].tolist()))
    assert len(kept[0]) == 5
    assert kept[0] == kept[1]


def test_the_spool_is_gone_at_the_end_and_stale_ones_at_the_start(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    (spool / "stale").write_text("x")
    opened = Ledger(spool, PLACEMENT, workers=Workers(1))
    assert not (spool / "stale").exists()
    with pytest.raises(KeyError), opened:
        raise KeyError
    assert not spool.exists()
