from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.data.entries import ENTRY, Entries, Placement
from rlhf.data.intake import Row
from rlhf.data.ledger import Ledger
from rlhf.data.records import Kind, Message, demonstration, encode, judgement, pair, ranking, with_origin
from rlhf.data.statistics import describe_pairs, describe_verdicts, double_ratings, mean_lengths, shared_prompts
from rlhf.data.workers import Workers

NAMES = ["b", "a"]


def entry(
    answers: int = 1, direction: int = 1, annotator: str | None = None, chars: tuple[int, int] = (3, 2)
) -> tuple[int, ...]:
    name = -1 if annotator is None else NAMES.index(annotator)
    return (0, 0, answers, direction, name, 5, *chars, sum(chars), 2, 0, 1)


def together(*entries: tuple[int, ...]) -> Entries:
    return np.array(list(entries), ENTRY)


def test_only_what_two_people_saw_is_a_double_rating() -> None:
    pairs = together(
        entry(1, 1, "b"),
        entry(1, -1, "a"),
        entry(2, 1, "a"),
        entry(3, 1, None),
        entry(3, -1, None),
        entry(1, 0, "a"),  # a second thought of the same person does not count
    )
    assert double_ratings(pairs, NAMES) == [(-1, 1)]


def test_pairs_are_described() -> None:
    pairs = together(
        entry(1, 1, "a", (10, 4)),
        entry(1, -1, "b", (4, 10)),
        entry(2, 1, "a", (6, 2)),
        entry(3, 0, None, (8, 4)),  # a tie says nothing about length
        entry(4, 1, None, (5, 5)),  # nor do equal lengths
    )
    found = describe_pairs(pairs, NAMES)
    assert found == {
        "rows": 5,
        "tie_share": pytest.approx(0.2),
        "chosen_chars": pytest.approx(33 / 5),
        "rejected_chars": pytest.approx(25 / 5),
        "longer_wins": pytest.approx(2 / 3),
        "annotators": {"a": 2, "b": 1},
        "rated_twice": 1,
        "agreement": 0.0,
        "kappa": pytest.approx(0.0),  # p_o = 0 and p_e = 0: they never use the same word
    }
    assert describe_pairs(together(), NAMES) == {"rows": 0}


def opened(folder: Path, split_of: Callable[[str], str]) -> Ledger:
    return Ledger(folder / "spool", Placement(split_of, lambda _: False), workers=Workers(1))


def test_lengths_and_leaks_of_a_ledger(tmp_path: Path) -> None:
    splits = iter(["train", "test", "train"])
    with opened(tmp_path, lambda _: next(splits)) as ledger:
        for text in ("abc", "abc"):
            prompt = [{"role": "user", "content": text}]
            content = demonstration(prompt, "12345") if len(ledger.prompts("train")) == 0 else pair(prompt, "1", "123")
            kind = "demonstration" if "response" in content else "pair"
            record = with_origin(kind, content, source="f", identity=None, meta={})  # type: ignore[arg-type]
            ledger.add(Row(kind, record, encode(record), "f", 1))  # type: ignore[arg-type]
        assert mean_lengths(ledger) == {
            "demonstrations": {"prompt": 3, "answer": 5},
            "pairs": {"prompt": 3, "answer": 2},
        }
        # the same prompt was put into train and into test on purpose
        assert shared_prompts(ledger) == 1


def add(ledger: Ledger, kind: Kind, content: dict[str, Any], meta: dict[str, Any] | None = None) -> None:
    record = with_origin(kind, content, source="f", identity=None, meta=meta or {})
    ledger.add(Row(kind, record, encode(record), "f", 1))


def ask(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def test_rankings_and_judgements_are_described(tmp_path: Path) -> None:
    with opened(tmp_path, lambda _: "train") as ledger:
        assert describe_verdicts(ledger) == {}
        for number, count in enumerate((2, 4)):
            texts = [f"{number} {place}" for place in range(count)]
            add(ledger, "ranking", ranking(ask("abc"), texts, order=range(count)))
        for number, good in enumerate((True, False, False)):
            add(ledger, "judgement", judgement(ask("abc"), str(number), good=good))
        assert describe_verdicts(ledger) == {
            "rankings": {"rows": 2, "responses": 3.0},
            "judgements": {"rows": 3, "good_share": pytest.approx(1 / 3)},
        }


def test_an_unlike_prompt_among_the_test_prompts_is_a_leak(tmp_path: Path) -> None:
    with opened(tmp_path, lambda _: "test") as ledger:
        add(ledger, "prompt", {"prompt": ask("abc")})
        add(ledger, "prompt", {"prompt": ask("xyz")}, {"unlike": True})
        assert shared_prompts(ledger) == 0
        add(ledger, "pair", pair(ask("xyz"), "A", "B"))
        assert shared_prompts(ledger) == 1
