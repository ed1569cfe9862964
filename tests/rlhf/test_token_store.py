"""Token ids on disk: the same as in memory, found only where they are what would be computed, whole or not at all."""

import ast
import json
import os
from pathlib import Path

import pytest

from rlhf import token_store
from rlhf.checkpoint import KEY_VARIABLE
from rlhf.demonstrations import encode
from rlhf.preferences import encode_pairs, encode_rankings
from rlhf.record_file import RecordFile
from rlhf.showcase import read_questions
from rlhf.token_store import FOLDER, TokenRows, prune
from rlhf.tokenizer import train_tokenizer

TEXTS = ["I found order 202, the mug.", "No.", "Where is it? <|end|>", "Ünd wo?"]


def record(number):
    text = TEXTS[number % len(TEXTS)]
    prompt = [{"role": "user", "content": f"{text} {number}"}]
    scores = {"score_chosen": 2.5, "score_rejected": 1.0 + number}
    pair = {"chosen": text, "rejected": text * (number % 3), "label": [1.0, 0.5][number % 2], **scores}
    ranking = {"responses": TEXTS[: 2 + number % 2], "ranks": [2, 1, 3][: 2 + number % 2], "scores": None}
    return {"prompt": prompt, "response": text * (number % 4), "meta": {"n": number}, **pair, **ranking}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 4, vocab_size=290)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, "k")
    monkeypatch.setattr(token_store, "BLOCK", 3)
    write(range(10))
    return tmp_path


def write(numbers):
    Path("rows.jsonl").write_text("".join(json.dumps(record(number)) + "\n" for number in numbers))


def stores():
    return sorted(path.name for path in FOLDER.iterdir()) if FOLDER.is_dir() else []


def test_every_kind_of_example_comes_back_as_it_would_be_in_memory(project, tokenizer):
    rows, listed = RecordFile(Path("rows.jsonl")), [record(number) for number in range(10)]
    for limit in (30, 60, 10**6):
        for kind in (encode_pairs, encode_rankings):
            found = kind(tokenizer, rows, max_tokens=limit)
            assert isinstance(found, TokenRows)
            assert list(found) == kind(tokenizer, listed, max_tokens=limit)
        encoded, expected = (encode(tokenizer, records, max_tokens=limit) for records in (rows, listed))
        assert list(encoded.examples) == expected.examples
        assert encoded.counts == expected.counts
        assert list(encoded.examples[2:4]) == expected.examples[2:4]
    assert expected.counts["records"] == 10
    with pytest.raises(IndexError):
        found[10]


def test_questions_are_read_from_both_files(project, tokenizer, monkeypatch):
    everything, _ = read_questions(Path("rows.jsonl"), tokenizer, max_tokens=99)
    limit = sorted(len(question.ids) for question in everything)[2]
    stored, dropped = read_questions(Path("rows.jsonl"), tokenizer, max_tokens=limit)
    monkeypatch.delenv(KEY_VARIABLE)
    in_memory, left_out = read_questions(Path("rows.jsonl"), tokenizer, max_tokens=limit)
    assert list(stored) == list(in_memory) == [one for one in everything if len(one.ids) <= limit]
    assert 0 < dropped == left_out < 10
    assert [one.meta["n"] for one in everything[2:4]] == [2, 3]


def test_a_second_call_encodes_nothing(project, tokenizer, monkeypatch):
    first = list(encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=60))

    def never(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr("rlhf.preferences.encode_prompts", never)
    assert list(encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=60)) == first


def test_what_the_ids_depend_on_is_in_the_key(project, tokenizer):
    rows = RecordFile(Path("rows.jsonl"))
    encode_pairs(tokenizer, rows, max_tokens=60)
    encode_pairs(tokenizer, rows, max_tokens=61)
    encode_rankings(tokenizer, rows, max_tokens=60)
    encode_pairs(tokenizer, rows[:4], max_tokens=60)
    encode_pairs(train_tokenizer(TEXTS, vocab_size=280), rows, max_tokens=60)
    assert len(stores()) == 5
    write(range(1, 10))
    encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=60)
    assert len(stores()) == 6


def test_no_example_at_all_is_a_store_too(project, tokenizer):
    assert list(encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=1)) == []
    write([])
    assert list(encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=60)) == []
    assert len(stores()) == 2


def test_outside_a_project_and_for_lists_nothing_is_kept(project, tokenizer, monkeypatch):
    encode_pairs(tokenizer, [record(1)], max_tokens=60)
    monkeypatch.delenv(KEY_VARIABLE)
    assert isinstance(encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=60), list)
    assert stores() == []


def test_a_store_that_is_not_whole_is_never_seen(project, tokenizer, monkeypatch):
    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(token_store.os, "fsync", broken)
    with pytest.raises(KeyboardInterrupt):
        encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=60)
    assert stores() == []


@pytest.mark.parametrize("name", [*token_store.FILES, token_store.COUNTS])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_store_that_lost_bytes_with_the_power_is_made_again(project, tokenizer, caplog, name, damage):
    rows = RecordFile(Path("rows.jsonl"))
    expected = list(encode_pairs(tokenizer, rows, max_tokens=60))
    file = FOLDER / stores()[0] / name
    file.unlink()
    if damage == "cut":
        file.touch()
    found = encode_pairs(tokenizer, rows, max_tokens=60)
    assert isinstance(found, TokenRows)
    assert list(found) == expected
    assert ("cannot be read" in caplog.text) == (file.stat().st_size > 0)
    assert len(stores()) == 1


def test_when_another_process_was_faster_its_store_is_taken(project, tokenizer, monkeypatch):
    rows, own = RecordFile(Path("rows.jsonl")), token_store._fill
    expected = list(encode_pairs(tokenizer, rows, max_tokens=60))
    [name] = stores()
    (FOLDER / name).rename("aside")

    def slower(folder, coded):
        own(folder, coded)
        Path("aside").rename(FOLDER / name)

    monkeypatch.setattr(token_store, "_fill", slower)
    assert list(encode_pairs(tokenizer, rows, max_tokens=60)) == expected
    assert stores() == [name]


def test_a_disk_that_cannot_be_written_costs_memory_only(project, tokenizer, caplog):
    FOLDER.parent.mkdir(parents=True)
    FOLDER.write_text("a file in the way")
    found = encode_pairs(tokenizer, RecordFile(Path("rows.jsonl")), max_tokens=60)
    assert len(found) == 10
    assert "token ids are held in memory" in caplog.text


def test_old_stores_go_first(project, tokenizer, monkeypatch):
    rows = RecordFile(Path("rows.jsonl"))
    for limit in (50, 51, 52):
        kept = encode_pairs(tokenizer, rows, max_tokens=limit)
        for place, store in enumerate(stores()):
            os.utime(FOLDER / store, (place, place))
    monkeypatch.setattr(token_store, "MOST_STORES", 1)
    last = stores()[-1]
    prune()
    assert stores() == [last]
    assert len(list(kept)) == 10  # what is mapped can still be read


def test_every_module_that_encodes_is_in_the_key():
    encoders = {"encode_prompts", "encode_responses", "cut_response", "stored"}
    using = set()
    for file in Path(token_store.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        if "stored" in names & encoders:
            using.add(file.stem)
    assert using <= set(token_store.SOURCES)
