"""The accepted records of a run: where each goes, which are the same, which contradict each other.

Records are written to spool files as they come and only a small entry of each is kept in memory, so that the size of
the texts does not matter. When everything has been read, decisions that need the whole (contradictions, limits, what
to derive from what) mark entries as dropped, and the spool is copied to its final place without them.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, Self

from rlhf.data.intake import Refused, Row
from rlhf.data.records import Kind, Message, Record, answers_of, canonical_json, content_id, digest, encode
from rlhf.data.splits import SPLITS, UNLIKE, Split
from rlhf.outputs import atomic_writer

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
SHARED = {own: folder for folder, own in FOR_JUDGE.items()}
SAID: dict[Kind, tuple[str, ...]] = {
    "pair": ("label", "annotator", "score_chosen", "score_rejected"),
    "probe": ("label", "annotator", "score_chosen", "score_rejected"),
    "ranking": ("annotator",),
    "judgement": ("good", "annotator"),
}
"""Fields that make two rows about the same answers different rows."""


class Entry(NamedTuple):
    """What is remembered of a record."""

    identity: int
    """Hash of all that makes two records the same: content and annotator, without id, source and meta."""
    prompt: int
    """Hash of the prompt."""
    answers: int
    """Hash of prompt and answers, whatever their order."""
    direction: int
    """Of a pair: 1 when the answer that sorts first was preferred, -1 for the other, 0 for a tie. Of a judgement: 1 for
    a good answer, -1 for a bad one."""
    annotator: str | None
    prompt_chars: int
    answer_chars: tuple[int, ...]
    """Lengths in the order of `answers_of`."""
    file: str
    line: int


@dataclass(slots=True)
class Part:
    """The records of one folder and split."""

    path: Path
    stream: IO[str]
    entries: list[Entry] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)

    def kept(self) -> list[Entry]:
        """Entries that have not been dropped, in order."""
        return [entry for place, entry in enumerate(self.entries) if place not in self.dropped]

    def lines(self) -> Iterator[str]:
        """Their records, one line of JSON each."""
        self.stream.flush()
        with self.path.open(encoding="utf-8", newline="\n") as stream:
            yield from (line for place, line in enumerate(stream) if place not in self.dropped)

    def drop(self, condition: Callable[[Entry], bool]) -> list[Entry]:
        """Drop the entries that meet a condition and return them."""
        places = [place for place, entry in enumerate(self.entries) if place not in self.dropped and condition(entry)]
        self.dropped.update(places)
        return [self.entries[place] for place in places]


class Ledger:
    """All accepted records, by folder and split. A context manager: its spool is gone at the end."""

    def __init__(
        self, spool: Path, split_of: Callable[[list[Message]], Split], is_for_judge: Callable[[list[Message]], bool]
    ):
        """Begin an empty ledger.

        Args:
            spool: a folder for temporary files; whatever it holds is removed.
            split_of: the split of a prompt.
            is_for_judge: whether training pairs with a prompt go to the judge.
        """
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir(parents=True)
        self._spool, self._split_of, self._is_for_judge = spool, split_of, is_for_judge
        self._seen: set[int] = set()
        self._ids: set[int] = set()
        self.repeated_ids = 0
        self.parts: dict[tuple[str, str], Part] = {}
        for folder in FOLDERS:
            for split in splits_of(folder):
                path = spool / f"{folder}.{split}"
                self.parts[folder, split] = Part(path, path.open("w", encoding="utf-8", newline="\n"))

    def __enter__(self) -> Self:
        """Nothing to do: the files were opened at once."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close and remove the spool."""
        for part in self.parts.values():
            part.stream.close()
        shutil.rmtree(self._spool, ignore_errors=True)

    def add(self, row: Row) -> bool:
        """Take a record in; False when the same one is there already."""
        entry = _entry(row)
        if entry.identity in self._seen:
            return False
        self._seen.add(entry.identity)
        prompt = row.record["prompt"]
        # Probes are never trained on, so all of them can be used for measuring.
        split: str = "test" if row.kind == "probe" else self._split_of(prompt)
        if row.kind == "prompt" and row.record["meta"].get("unlike") is True:
            split = UNLIKE
        folder = FOLDER_OF[row.kind]
        text = self._with_own_id(folder, row)
        if split == "train" and self._is_for_judge(prompt):
            folder = FOR_JUDGE.get(folder, folder)
        part = self.parts[folder, split]
        part.entries.append(entry)
        part.stream.write(text + "\n")
        return True

    def derive(self, kind: Kind, folder: str, make: Callable[[Record], Iterable[Record]]) -> None:
        """Add the new records that `make` makes of each kept record of a folder.

        Args:
            kind: of the new records.
            folder: where the old ones are.
            make: from an old record to the contents of new ones, each perhaps with a `meta` of its own.
        """
        for split in SPLITS:
            part = self.parts[folder, split]
            for entry, line in zip(part.kept(), part.lines(), strict=True):
                old = json.loads(line)
                for content in make(old):
                    meta = {**old["meta"], **content.pop("meta", {})}
                    new = {"id": content_id(kind, content), **content, "source": old["source"], "meta": meta}
                    self.add(Row(kind, new, encode(new), entry.file, entry.line))

    def discard(self, folder: str) -> None:
        """Drop everything in a folder, so that the same records may come back from another source."""
        for split in SPLITS:
            dropped = self.parts[folder, split].drop(lambda _: True)
            self._seen.difference_update(entry.identity for entry in dropped)

    def drop_contradictions(self) -> list[Refused]:
        """Drop every pair and judgement that the same annotator (or nobody in particular) decided both ways.

        Two people who disagree are information; one source that says both is an error, and which of the two labels is
        the error cannot be known, so both go.
        """
        directions: dict[tuple[int, str | None], set[int]] = defaultdict(set)
        for entry in self.entries("pairs", "judge_pairs", "judgements"):
            directions[entry.answers, entry.annotator].add(entry.direction)
        both = {key for key, seen in directions.items() if {1, -1} <= seen}
        dropped = [
            entry
            for folder in ("pairs", "judge_pairs", "judgements")
            for split in SPLITS
            for entry in self.parts[folder, split].drop(lambda entry: (entry.answers, entry.annotator) in both)
        ]
        return [
            Refused(entry.file, entry.line, "label", str(entry.annotator or ""), "contradicted by the same annotator")
            for entry in dropped
        ]

    def drop_known_probes(self) -> list[Refused]:
        """Drop probes whose prompt is also among the records of train or dev."""
        known = self.prompts("train") | self.prompts("dev")
        dropped = self.parts["probes", "test"].drop(lambda entry: entry.prompt in known)
        return [Refused(entry.file, entry.line, "prompt", "", "probe is not held out") for entry in dropped]

    def drop_known_unlike(self) -> list[Refused]:
        """Drop prompts marked as unlike the others that are among the others."""
        known = set[int]().union(*(self.prompts(split) for split in SPLITS))
        dropped = self.parts["prompts", UNLIKE].drop(lambda entry: entry.prompt in known)
        return [
            Refused(entry.file, entry.line, "prompt", "", "marked as unlike, but among the others") for entry in dropped
        ]

    def drop_judged_by_judge(self) -> int:
        """Drop training judgements on prompts that train the judge, which no policy may learn from; how many."""
        judged = {entry.prompt for folder in SHARED for entry in self.parts[folder, "train"].kept()}
        return len(self.parts["judgements", "train"].drop(lambda entry: entry.prompt in judged))

    def limit(self, folder: str, split: str, most: int | None) -> None:
        """Keep at most so many records of a part, chosen by their hash, which is as good as by lot."""
        part = self.parts[folder, split]
        kept = sorted(entry.identity for entry in part.kept())
        if most is not None and len(kept) > most:
            part.drop(lambda entry: entry.identity >= kept[most])

    def entries(self, *folders: str) -> Iterator[Entry]:
        """Kept entries of train, dev and test."""
        for folder in folders:
            for split in SPLITS:
                yield from self.parts[folder, split].kept()

    def pairs(self) -> Iterator[Entry]:
        """Kept pairs of every split, the judge's included."""
        return self.entries("pairs", "judge_pairs")

    def prompts(self, split: str) -> set[int]:
        """Hashes of the prompts of all kept records of a split."""
        folders = [folder for folder in FOLDERS if split in splits_of(folder)]
        return {entry.prompt for folder in folders for entry in self.parts[folder, split].kept()}

    def write(self, folder: str, into: Path) -> dict[str, int]:
        """Copy a folder's kept records to its final place and return their numbers by split.

        The judge is measured on the same held-out records as the reward model: neither is trained on them.
        """
        counts: dict[str, int] = {}
        for split in splits_of(folder):
            part = self.parts[folder if split == "train" else SHARED.get(folder, folder), split]
            with atomic_writer(into / f"{split}.jsonl") as stream:
                stream.writelines(part.lines())
            counts[split] = len(part.entries) - len(part.dropped)
        return counts

    def _with_own_id(self, folder: str, row: Row) -> str:
        """The record's line, with an id that no other record of the folder has."""
        key = digest(row.record["id"], salt=folder)
        if key not in self._ids:
            self._ids.add(key)
            return row.text
        self.repeated_ids += 1
        own = f"{row.record['id']}-{content_id(row.kind, {**row.record, 'id': None})}"
        self._ids.add(digest(own, salt=folder))
        return encode({**row.record, "id": own})


def splits_of(folder: str) -> tuple[str, ...]:
    """The files of a folder: prompts have one more, of those that are unlike the others."""
    return (*SPLITS, UNLIKE) if folder == "prompts" else SPLITS


def _entry(row: Row) -> Entry:
    record = row.record
    prompt = canonical_json(record["prompt"])
    answers = answers_of(row.kind, record)
    annotator, direction, said = record.get("annotator"), 0, ""
    if row.kind in ("pair", "probe"):
        direction = 0 if record["label"] == 0.5 else 1 if answers[0] <= answers[1] else -1
    elif row.kind == "judgement":
        direction = 1 if record["good"] else -1
    # A ranking says the same in whatever order its answers stand.
    order = []
    if row.kind == "ranking":
        order = sorted(zip(answers, record["ranks"], record["scores"] or [None] * len(answers), strict=True))
    if row.kind in SAID:
        said = canonical_json([direction, *(record[name] for name in SAID[row.kind]), *order])
    together = digest(canonical_json([prompt, sorted(answers)]), salt=row.kind)
    return Entry(
        identity=digest(said, salt=str(together)),
        prompt=digest(prompt),
        answers=together,
        direction=direction,
        annotator=annotator,
        prompt_chars=sum(len(message["content"]) for message in record["prompt"]),
        answer_chars=tuple(map(len, answers)),
        file=row.file,
        line=row.line,
    )
