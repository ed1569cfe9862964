"""The accepted records of a run: where each goes, which are the same, which contradict each other.

Records are written to spool files as they come and only their entries are kept in memory, so that the size of the
texts does not matter. When everything has been read, decisions that need the whole (contradictions, limits, what to
derive from what) mark entries as dropped, and the spool is copied to its final place without them.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rlhf.data.entries import (
    ENTRY,
    FOLDER_OF,
    FOLDERS,
    FOR_JUDGE,
    PART,
    PARTS,
    Block,
    Entries,
    Make,
    Placement,
    derive,
    prepare,
    splits_of,
)
from rlhf.data.intake import Refused, Row
from rlhf.data.key_set import KeySet
from rlhf.data.parts import Part
from rlhf.data.records import Kind, content_id, encode
from rlhf.data.splits import SPLITS, UNLIKE
from rlhf.data.workers import Workers

SHARED = {own: folder for folder, own in FOR_JUDGE.items()}
KIND_OF: dict[str, Kind] = {folder: kind for kind, folder in FOLDER_OF.items()}
_FOLDER_IDS = [SHARED.get(folder, folder) for folder, _ in PARTS]
"""For each part the folder in which an id is used once."""
BLOCK = 5000
"""Records that others are derived from together."""


class Ledger:
    """All accepted records, by folder and split. A context manager: its spool is gone at the end."""

    def __init__(self, spool: Path, placement: Placement, *, workers: Workers):
        """Begin an empty ledger.

        Args:
            spool: a folder for temporary files; whatever it holds is removed.
            placement: the split of a prompt, and whether training pairs with it go to the judge.
            workers: processes that derive records; the result does not depend on their number.
        """
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir(parents=True)
        self._spool, self.placement, self._workers = spool, placement, workers
        self._seen, self._ids = KeySet(), KeySet()
        self._files: dict[str, int] = {}
        self._annotators: dict[str, int] = {}
        self.repeated_ids = 0
        self.parts = {part: Part(spool / ".".join(part)) for part in PARTS}

    def __enter__(self) -> Self:
        """Nothing to do: the files were opened at once."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close and remove the spool."""
        for part in self.parts.values():
            part.close()
        shutil.rmtree(self._spool, ignore_errors=True)

    @property
    def annotators(self) -> list[str]:
        """Names that the entries' `annotator` speaks of."""
        return list(self._annotators)

    def file(self, name: str) -> int:
        """The number that stands for a file in entries."""
        return self._files.setdefault(name, len(self._files))

    def add(self, row: Row) -> bool:
        """Take a record in; False when the same one is there already."""
        return self.take(prepare([row], self.placement, file=self.file(row.file))) == 1

    def take(self, block: Block) -> int:
        """Take records in, but for those that are there already; how many were new."""
        new = self._seen.add(block.entries["identity"])
        entries, parts = block.entries[new], block.parts[new]
        lines, ids = list(compress(block.lines, new)), list(compress(block.ids, new))
        if block.annotators:
            known = self._annotators
            codes = np.array([known.setdefault(name, len(known)) for name in block.annotators] + [-1], np.int32)
            entries["annotator"] = codes[entries["annotator"]]  # -1 is the last place
        self._own_ids(ids, parts, lines)
        for place in np.unique(parts):
            here = parts == place
            self.parts[PARTS[place]].add(entries[here], list(compress(lines, here)))
        return len(lines)

    def derive(self, kind: Kind, folder: str, make: Make, *, once: bool = False) -> None:
        """Add the new records that `make` makes of each kept record of a folder.

        Args:
            kind: of the new records.
            folder: where the old ones are.
            make: from an old record to the contents of new ones, which have its prompt, each perhaps with a `meta` of
                its own; a function of a module, so that other processes find it.
            once: the first record of a prompt is enough, since the others would give the same.
        """
        own = FOLDER_OF[kind]
        for split in SPLITS:
            part, asked = self.parts[folder, split], KeySet()
            goes = PART[FOR_JUDGE.get(own, own) if folder in SHARED else own, split]
            old = part.blocks(BLOCK, partial(_new_prompts, asked) if once else None)
            for block in self._workers.map(partial(derive, kind, goes, make), old):
                self.take(block)

    def discard(self, folder: str) -> None:
        """Drop everything in a folder, so that the same records may come back from another source."""
        for split in SPLITS:
            dropped = self.parts[folder, split].drop(lambda entries: np.ones(len(entries), np.bool_))
            self._seen.remove(dropped["identity"])

    def drop_contradictions(self) -> list[Refused]:
        """Drop every pair and judgement that the same annotator (or nobody in particular) decided both ways.

        Two people who disagree are information; one source that says both is an error, and which of the two labels is
        the error cannot be known, so both go.
        """
        folders = ("pairs", "judge_pairs", "judgements")
        entries = self.entries(*folders)
        better, worse = (entries["answers"][entries["direction"] == direction] for direction in (1, -1))
        disputed = np.intersect1d(better, worse)
        directions: dict[tuple[int, int], set[int]] = defaultdict(set)
        some = entries[np.isin(entries["answers"], disputed)]
        for answers, annotator, direction in some[["answers", "annotator", "direction"]].tolist():
            directions[answers, annotator].add(direction)
        both = {key for key, seen in directions.items() if {1, -1} <= seen}

        def contradicted(entries: Entries) -> NDArray[np.bool_]:
            found = np.isin(entries["answers"], disputed)
            keys = entries[found][["answers", "annotator"]].tolist()
            found[found] = np.fromiter((key in both for key in keys), np.bool_, len(keys))
            return found

        names = [*self.annotators, ""]  # -1 is the last place
        return [
            Refused(file, line, "label", names[annotator], "contradicted by the same annotator")
            for folder in folders
            for split in SPLITS
            for file, line, annotator in self._places(self.parts[folder, split].drop(contradicted))
        ]

    def drop_known_probes(self) -> list[Refused]:
        """Drop probes whose prompt is also among the records of train or dev."""
        known = np.union1d(self.prompts("train"), self.prompts("dev"))
        dropped = self.parts["probes", "test"].drop(lambda entries: np.isin(entries["prompt"], known))
        return [Refused(file, line, "prompt", "", "probe is not held out") for file, line, _ in self._places(dropped)]

    def drop_known_unlike(self) -> list[Refused]:
        """Drop prompts marked as unlike the others that are among the others."""
        known = np.concatenate([self.prompts(split) for split in SPLITS])
        dropped = self.parts["prompts", UNLIKE].drop(lambda entries: np.isin(entries["prompt"], known))
        reason = "marked as unlike, but among the others"
        return [Refused(file, line, "prompt", "", reason) for file, line, _ in self._places(dropped)]

    def drop_judged_by_judge(self) -> int:
        """Drop training judgements on prompts that train the judge, which no policy may learn from; how many."""
        judged = np.concatenate([self.parts[folder, "train"].kept()["prompt"] for folder in SHARED])
        return len(self.parts["judgements", "train"].drop(lambda entries: np.isin(entries["prompt"], judged)))

    def limit(self, folder: str, split: str, most: int | None) -> None:
        """Keep at most so many records of a part, chosen by their hash, which is as good as by lot."""
        part = self.parts[folder, split]
        if most is not None and part.count() > most:
            first_out = np.sort(part.kept()["identity"])[most]
            part.drop(lambda entries: entries["identity"] >= first_out)

    def entries(self, *folders: str) -> Entries:
        """Kept entries of train, dev and test."""
        found = [self.parts[folder, split].kept() for folder in folders for split in SPLITS]
        return np.concatenate(found) if found else np.empty(0, ENTRY)

    def pairs(self) -> Entries:
        """Kept pairs of every split, the judge's included."""
        return self.entries("pairs", "judge_pairs")

    def prompts(self, split: str) -> NDArray[np.uint64]:
        """Hashes of the prompts of all kept records of a split, each once, sorted."""
        folders = [folder for folder in FOLDERS if split in splits_of(folder)]
        return np.unique(np.concatenate([self.parts[folder, split].kept()["prompt"] for folder in folders]))

    def write(self, folder: str, into: Path) -> dict[str, int]:
        """Copy a folder's kept records to its final place and return their numbers by split.

        The judge is measured on the same held-out records as the reward model: neither is trained on them.
        """
        counts: dict[str, int] = {}
        for split in splits_of(folder):
            part = self.parts[folder if split == "train" else SHARED.get(folder, folder), split]
            part.write(into / f"{split}.jsonl")
            counts[split] = part.count()
        return counts

    def _own_ids(self, ids: list[str], parts: NDArray[np.int8], lines: list[bytes]) -> None:
        """Give those records another id whose id is taken in their folder already."""
        folders = [_FOLDER_IDS[place] for place in parts.tolist()]
        # Which number stands for an id is of no account, so Python's own hash will do.
        keys = np.fromiter(map(hash, zip(folders, ids, strict=True)), np.int64, len(ids)).view(np.uint64)
        if len(np.unique(keys)) == len(keys) and not self._ids.holds(keys).any():
            self._ids.add(keys)
            return
        for place, folder in enumerate(folders):
            if self._ids.add(keys[place : place + 1])[0]:
                continue
            self.repeated_ids += 1
            record = json.loads(lines[place])
            own = f"{record['id']}-{content_id(KIND_OF[folder], {**record, 'id': None})}"
            self._ids.add(np.array([hash((folder, own))], np.int64).view(np.uint64))
            lines[place] = f"{encode({**record, 'id': own})}\n".encode()

    def _places(self, entries: Entries) -> Iterator[tuple[str, int, int]]:
        """File, line and annotator of each entry."""
        files = list(self._files)
        return ((files[file], line, name) for file, line, name in entries[["file", "line", "annotator"]].tolist())


def _new_prompts(asked: KeySet, entries: Entries) -> NDArray[np.bool_]:
    return asked.add(entries["prompt"])
