import json

from rlhf.data.entries import ENTRY, PART, Old, Placement, derive, prepare
from rlhf.data.intake import Row
from rlhf.data.records import Kind, Record, canonical_json, digest, encode, pair, ranking, with_origin

PLACEMENT = Placement(lambda prompt: "test" if "t" in json.loads(prompt)[0]["content"] else "train", lambda _: True)


def row(kind: Kind, content: Record, line: int = 1) -> Row:
    record = with_origin(kind, content, source="f", identity=f"r{line}", meta={"n": line})
    return Row(kind, record, encode(record), "f", line)


def ask(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_a_pair_in_columns() -> None:
    block = prepare([row("pair", pair(ask("abc"), "B", "AA", annotator="kim"), 7)], PLACEMENT, file=3)
    entry = block.entries[0]
    assert block.entries.dtype == ENTRY
    assert entry["prompt"] == digest(canonical_json(ask("abc")))
    # "B" was preferred and sorts after "AA"
    assert (entry["direction"], entry["prompt_chars"], entry["first_chars"], entry["second_chars"]) == (-1, 3, 1, 2)
    assert (entry["answer_chars"], entry["answers_number"], entry["file"], entry["line"]) == (3, 2, 3, 7)
    assert (block.annotators, entry["annotator"], block.ids, block.parts.tolist()) == (
        ["kim"], 0, ["r7"], [PART["judge_pairs", "train"]],
    )  # fmt: skip
    assert json.loads(block.lines[0])["chosen"] == "B"


def test_the_same_pair_the_other_way_round_has_the_same_answers() -> None:
    rows = [row("pair", pair(ask("t"), *answers)) for answers in (("A", "B"), ("B", "A"))]
    first, second = prepare(rows, PLACEMENT, file=0).entries
    assert first["answers"] == second["answers"]
    assert first["identity"] != second["identity"]
    assert (first["direction"], second["direction"]) == (1, -1)


def test_derived_records_have_their_source_s_prompt_place_and_facts() -> None:
    old = prepare([row("ranking", ranking(ask("t"), ["A", "B"], order=[1, 2]), 5)], PLACEMENT, file=2)
    block = derive("prompt", 4, lambda record: [{"prompt": record["prompt"]}], Old(old.entries, old.lines))
    new, source = block.entries[0], old.entries[0]
    assert [new[name] for name in ("prompt", "prompt_chars", "file", "line")] == [
        source[name] for name in ("prompt", "prompt_chars", "file", "line")
    ]
    assert (block.parts.tolist(), json.loads(block.lines[0])["meta"]) == ([4], {"n": 5})
    # A prompt that was read is the same record as one that was derived.
    assert new["identity"] == prepare([row("prompt", {"prompt": ask("t")})], PLACEMENT, file=0).entries[0]["identity"]
