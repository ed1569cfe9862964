import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.data.derivation import derive_pairs, derive_the_rest, limit, refuse_empty
from rlhf.data.entries import Placement
from rlhf.data.intake import Row
from rlhf.data.ledger import Ledger
from rlhf.data.records import Kind, Message, demonstration, encode, judgement, pair, ranking, with_origin
from rlhf.data.splits import SPLITS, Split
from rlhf.data.workers import Workers
from rlhf.errors import BadInput


def ask(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def split_of(prompt: str) -> Split:
    named: dict[str, Split] = {"d": "dev", "t": "test"}
    return named.get(json.loads(prompt)[0]["content"][0], "train")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    placement = Placement(split_of, lambda prompt: str(json.loads(prompt)[0]["content"]).startswith("j"))
    with Ledger(tmp_path / "spool", placement, workers=Workers(1)) as opened:
        yield opened


def add(ledger: Ledger, kind: Kind, content: dict[str, Any], identity: str = "r") -> None:
    record = with_origin(kind, content, source="f", identity=identity, meta={})
    assert ledger.add(Row(kind, record, encode(record), "f", 1))


def lines(ledger: Ledger, folder: str, split: str) -> list[str]:
    return [line.decode() for line in ledger.parts[folder, split].lines()]


def test_rankings_alone_become_pairs_for_everybody(ledger: Ledger) -> None:
    for name in ("a", "j", "d", "t"):
        add(ledger, "ranking", ranking(ask(name), ["A", "B", "C"], order=[1, 2, 2]), identity=name)
    derive_pairs(ledger)
    # Of three pairs B and C tie; the judge's prompt gives pairs to the judge alone.
    assert {(f, s): len(lines(ledger, f, s)) for f in ("pairs", "judge_pairs") for s in SPLITS} == {
        ("pairs", "train"): 2, ("pairs", "dev"): 2, ("pairs", "test"): 2,
        ("judge_pairs", "train"): 2, ("judge_pairs", "dev"): 0, ("judge_pairs", "test"): 0,
    }  # fmt: skip
    assert '"meta":{"ranking":"a"}' in lines(ledger, "pairs", "train")[0]


def test_beside_pairs_rankings_stay_what_they_are(ledger: Ledger) -> None:
    add(ledger, "pair", pair(ask("b"), "A", "B"))
    for name in ("a", "j"):
        add(ledger, "ranking", ranking(ask(name), ["A", "B"], order=[1, 2]), identity=name)
    derive_pairs(ledger)
    assert len(lines(ledger, "pairs", "train")) == 1
    assert len(lines(ledger, "judge_pairs", "train")) == 0


def test_only_the_best_answers_of_a_ranking_are_demonstrations(ledger: Ledger) -> None:
    add(ledger, "ranking", ranking(ask("a"), ["A", "B", "C", "D"], order=[2, 1, 1, 3]))
    add(ledger, "ranking", ranking(ask("b"), ["A", "B"], order=[1, 1]))
    derive_pairs(ledger)
    derive_the_rest(ledger, demonstrations_from="auto", prompts_from="auto")
    found = lines(ledger, "demonstrations", "train")
    assert [text.split('"response":"')[1][0] for text in found] == ["B", "C"]
    # The ranking that is one tie has no demonstration, but its prompt can be asked.
    assert len(lines(ledger, "prompts", "train")) == 2


def test_prompts_of_judgements_are_taken_with_all_others(ledger: Ledger) -> None:
    add(ledger, "demonstration", demonstration(ask("a"), "A"))
    add(ledger, "judgement", judgement(ask("b"), "A", good=False))
    derive_the_rest(ledger, demonstrations_from="auto", prompts_from="auto")
    assert len(lines(ledger, "prompts", "train")) == 2
    assert len(lines(ledger, "demonstrations", "train")) == 1


def test_limits_hold_for_training_and_held_out_parts(ledger: Ledger) -> None:
    for split in ("a", "d"):
        for number in range(5):
            add(ledger, "judgement", judgement(ask(f"{split}{number}"), "A", good=True), identity=f"{split}{number}")
    limit(ledger, {"judgements": 3}, 2)
    assert (len(lines(ledger, "judgements", "train")), len(lines(ledger, "judgements", "dev"))) == (3, 2)


def test_judgements_alone_say_what_they_are_good_for(ledger: Ledger) -> None:
    add(ledger, "judgement", judgement(ask("a"), "A", good=True))
    with pytest.raises(BadInput, match=r"1 judgements of single answers but no pairs or rankings.*dpo\.objective: kto"):
        refuse_empty(ledger)


def test_an_empty_part_is_named(ledger: Ledger) -> None:
    add(ledger, "pair", pair(ask("a"), "A", "B"))
    with pytest.raises(BadInput, match=r"demonstrations/train \(training has 0 demonstrations, 1 pairs"):
        refuse_empty(ledger)
