"""What is remembered of a record while the whole of the data is not known yet: a few numbers, in columns.

A record becomes one line of text, which goes to disk, and one element of an array of `ENTRY`, which stays. Everything
here depends on one record alone, so that blocks of records can be prepared in any process and in any number of them.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlhf.data.intake import Row
from rlhf.data.records import Kind, Record, answers_of, canonical_json, content_id, digest, encode
from rlhf.data.splits import SPLITS, UNLIKE

ENTRY = np.dtype(
    [
        # hash of all that makes two records the same: content and annotator, without id, source and meta
        ("identity", "u8"),
        ("prompt", "u8"),  # hash of the prompt
        ("answers", "u8"),  # hash of prompt and answers, whatever their order
        # of a pair: 1 when the answer that sorts first was preferred, -1 for the other, 0 for a tie; of a judgement: 1
        # for a good answer, -1 for a bad one
        ("direction", "i1"),
        ("annotator", "i4"),  # place in a list of names; -1: nobody in particular
        ("prompt_chars", "i4"),
        ("first_chars", "i4"),  # of the first answer, in the order of `answers_of`
        ("second_chars", "i4"),
        ("answer_chars", "i8"),  # of all answers together
        ("answers_number", "i4"),
        ("file", "i4"),  # place in a list of names
        ("line", "i4"),
    ]
)
"""Columns of what is remembered."""
Entries = NDArray[np.void]

FOLDERS = (
    "demonstrations", "pairs", "judge_pairs", "prompts", "probes", "rankings", "judge_rankings", "judgements",
)  # fmt: skip
FOLDER_OF: dict[Kind, str] = {
    "demonstration": "demonstrations",
    "pair": "pairs",
    "ranking": "rankings",
    "judgement": "judgements",
    "prompt": "prompts",
    "probe": "probes",
}
FOR_JUDGE = {"pairs": "judge_pairs", "rankings": "judge_rankings"}
"""Where training records go whose prompt is the judge's."""
SAID: dict[Kind, tuple[str, ...]] = {
    "pair": ("label", "annotator", "score_chosen", "score_rejected"),
    "probe": ("label", "annotator", "score_chosen", "score_rejected"),
    "ranking": ("annotator",),
    "judgement": ("good", "annotator"),
}
"""Fields that make two rows about the same answers different rows."""


def splits_of(folder: str) -> tuple[str, ...]:
    """The files of a folder: prompts have one more, of those that are unlike the others."""
    return (*SPLITS, UNLIKE) if folder == "prompts" else SPLITS


PARTS = tuple((folder, split) for folder in FOLDERS for split in splits_of(folder))
"""Every file: its folder and its split."""
PART = {part: place for place, part in enumerate(PARTS)}


class Block(NamedTuple):
    """Records with all that can be said of each of them alone."""

    entries: Entries
    """[N] of `ENTRY`"""
    ids: list[str]
    """[N]"""
    parts: NDArray[np.int8]
    """Where each goes, as a place in `PARTS`. [N]"""
    lines: list[bytes]
    """The records as lines of text, each with its line feed. [N]"""
    annotators: list[str]
    """Names that `annotator` speaks of."""


class Old(NamedTuple):
    """Records that others are made of."""

    entries: Entries
    """[N] of `ENTRY`"""
    lines: list[bytes]
    """[N]"""


_parse = json.JSONDecoder().decode
Make: TypeAlias = Callable[[Record], Iterable[Record]]


class Placement(NamedTuple):
    """Which part a prompt's records go to; both are asked with the prompt in canonical JSON."""

    split_of: Callable[[str], str]
    is_for_judge: Callable[[str], bool]

    def part_of(self, row: Row, prompt: str) -> int:
        """The part of a row, as a place in `PARTS`."""
        # Probes are never trained on, so all of them can be used for measuring.
        split = "test" if row.kind == "probe" else self.split_of(prompt)
        if row.kind == "prompt" and row.record["meta"].get("unlike") is True:
            split = UNLIKE
        folder = FOLDER_OF[row.kind]
        if split == "train" and folder in FOR_JUDGE and self.is_for_judge(prompt):
            folder = FOR_JUDGE[folder]
        return PART[folder, split]


def prepare(rows: Sequence[Row], placement: Placement, *, file: int) -> Block:
    """Describe records that were read from one file.

    Args:
        rows: the records, any kinds.
        placement: where each goes.
        file: place of the file's name in the reader's list.
    """
    found, ids, parts, names = [], [], [], dict[str, int]()
    for row in rows:
        record = row.record
        prompt = canonical_json(record["prompt"])
        chars = sum(len(message["content"]) for message in record["prompt"])
        found.append(_entry(row.kind, record, prompt, digest(prompt), chars, names, (file, row.line)))
        ids.append(record["id"])
        parts.append(placement.part_of(row, prompt))
    return _block(found, ids, parts, [f"{row.text}\n".encode() for row in rows], names)


def derive(kind: Kind, part: int, make: Make, old: Old) -> Block:
    """Describe records that are made of others.

    Args:
        kind: of the new records.
        part: where all of them go, as a place in `PARTS`.
        make: from an old record to the contents of new ones, which have its prompt, each perhaps with its own `meta`.
        old: the old records.
    """
    found, ids, lines, names = [], [], [], dict[str, int]()
    known = old.entries[["prompt", "prompt_chars", "file", "line"]].tolist()
    for (prompt_hash, prompt_chars, *place), line in zip(known, old.lines, strict=True):
        source = _parse(line.decode())
        for content in make(source):
            meta = {**source["meta"], **content.pop("meta", {})}
            record = {"id": content_id(kind, content), **content, "source": source["source"], "meta": meta}
            prompt = canonical_json(record["prompt"])
            found.append(_entry(kind, record, prompt, prompt_hash, prompt_chars, names, place))
            ids.append(record["id"])
            lines.append(f"{encode(record)}\n".encode())
    return _block(found, ids, [part] * len(found), lines, names)


def _block(
    found: list[tuple[Any, ...]], ids: list[str], parts: list[int], lines: list[bytes], names: dict[str, int]
) -> Block:
    entries = np.array(found, dtype=ENTRY)
    return Block(entries, ids, np.array(parts, np.int8), lines, list(names))


def _entry(
    kind: Kind, record: Record, prompt: str, prompt_hash: int, prompt_chars: int, names: dict[str, int],
    place: Sequence[int],
) -> tuple[Any, ...]:  # fmt: skip
    """The columns of `ENTRY` for one record; `names` takes in its annotator."""
    answers = answers_of(kind, record)
    annotator, direction, said = record.get("annotator"), 0, ""
    if kind in ("pair", "probe"):
        direction = 0 if record["label"] == 0.5 else 1 if answers[0] <= answers[1] else -1
    elif kind == "judgement":
        direction = 1 if record["good"] else -1
    # A ranking says the same in whatever order its answers stand.
    order = []
    if kind == "ranking":
        order = sorted(zip(answers, record["ranks"], record["scores"] or [None] * len(answers), strict=True))
    if kind in SAID:
        said = canonical_json([direction, *(record[name] for name in SAID[kind]), *order])
    together = digest(canonical_json([prompt, sorted(answers)]), salt=kind)
    lengths = [*map(len, answers)]
    return (
        digest(said, salt=str(together)), prompt_hash, together, direction,
        -1 if annotator is None else names.setdefault(annotator, len(names)),
        prompt_chars, lengths[0] if lengths else 0, lengths[1] if len(lengths) > 1 else 0, sum(lengths), len(lengths),
        *place,
    )  # fmt: skip
