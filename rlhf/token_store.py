"""Token ids on disk: examples are encoded once, written as they come, and read where they are asked for.

A store is a folder `.ratchet/tmp/tokens/KEY`. KEY is a hash of the tokenizer, the records, the settings and the sources
that encode, so that ids that are found are those that would be computed. A list of lists of a million examples takes
gigabytes; a store takes as much memory as the operating system likes to lend. As with checkpoints, nothing is kept and
nothing is found outside a stage of a project, which shows in the variable RATCHET_KEY: then there are lists.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from rlhf import distributed
from rlhf.checkpoint import KEY_VARIABLE
from rlhf.record_file import digest_of
from rlhf.row_views import View

FOLDER = Path(".ratchet/tmp/tokens")
MOST_STORES = 48
MOST_BYTES = 2**34
"""Stores beyond either bound go, those that were used longest ago first."""
BLOCK = 1000
"""Records that are encoded together."""
SOURCES = ("batches", "demonstrations", "preferences", "showcase", "token_store", "tokenizer")
"""Modules of `rlhf` that the ids go through; another version of one of them makes what is kept worthless."""
FILES = {
    "ids": np.int32,  # of all examples, one after the other
    "ends": np.int64,  # where each list of ids ends
    "lists": np.int64,  # how many lists there are up to the end of each example
    "values": np.float64,  # other numbers
    "value_ends": np.int64,  # where the numbers of each example end
}
CODES = {np.int32: "i", np.int64: "q", np.float64: "d"}
COUNTS = "counts.json"

T = TypeVar("T")
log = logging.getLogger(__name__)


class Coded(NamedTuple):
    """One example as numbers."""

    ids: Sequence[list[int]]
    """Any number of lists of token ids."""
    values: Sequence[float] = ()


class TokenRows(Sequence[T]):
    """Examples of a store; each is made anew when it is asked for."""

    def __init__(self, folder: Path, make: Callable[[Coded], T]) -> None:
        """Open a store.

        Args:
            folder: of the store.
            make: from numbers to an example.

        Raises:
            OSError: there is no store.
            ValueError: a file of it is not as long as it was written: the machine lost its power.
        """
        self._make = make
        told = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        self.counts: dict[str, int] = told["counts"]
        if told["bytes"] != _sizes(folder):
            raise ValueError("its files are not as long as they were written")
        self._ids, self._ends, self._lists, self._values, self._value_ends = (
            _mapped(folder / name, kind) for name, kind in FILES.items()
        )

    def __len__(self) -> int:
        return len(self._lists) - 1

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        """One example, or a view of some."""
        if isinstance(place, slice):
            return View(self, np.arange(len(self))[place])
        row = range(len(self))[place]
        first, last = self._lists[row : row + 2].tolist()
        bounds = self._ends[first : last + 1].tolist()
        start, end = self._value_ends[row : row + 2].tolist()
        ids = [self._ids[begin:stop].tolist() for begin, stop in pairwise(bounds)]
        return self._make(Coded(ids, self._values[start:end].tolist()))


class Stored(NamedTuple):
    """Encoded examples, and what was counted while they were encoded."""

    examples: Sequence[Any]
    counts: dict[str, int]


def stored(
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Any],
    encode: Callable[[Sequence[Any], Counter[str]], Iterable[Coded]],
    make: Callable[[Coded], Any],
    *,
    settings: Sequence[Any],
) -> Stored:
    """The examples of some records, from a store where the records are those of a file.

    Args:
        tokenizer: encodes.
        records: what is encoded.
        encode: from a block of records to examples, fewer perhaps; counts what it likes.
        make: from numbers to an example.
        settings: what else the ids depend on, as JSON; the first names the kind of example.

    Returns:
        The examples and counts, the same whether or not a store was used. Collective when there are several ranks.
    """

    def coded(counts: Counter[str]) -> Iterator[Coded]:
        stream = iter(records)
        while block := list(islice(stream, BLOCK)):
            yield from encode(block, counts)

    key = _key(tokenizer, records, settings)
    if key is not None:
        found = _open(FOLDER / key, make)
        if distributed.any_rank(found is None):
            if distributed.is_main():
                _write(FOLDER / key, coded)
            distributed.any_rank(False)  # the others wait until it is there
            found = _open(FOLDER / key, make)
        if found is not None:
            return Stored(found, found.counts)
    counts: Counter[str] = Counter()
    examples = [make(one) for one in coded(counts)]
    return Stored(examples, dict(counts))


def prune() -> None:
    """Remove the stores that were used longest ago until both bounds hold; the newest one always stays."""
    found = sorted(FOLDER.iterdir(), key=lambda store: (-_used(store), store.name))
    total = 0
    for count, store in enumerate(found, start=1):
        total += sum(file.stat().st_size for file in store.glob("*"))
        if count > 1 and (count > MOST_STORES or total > MOST_BYTES):
            # Whoever reads it goes on: a file that is mapped stays until it is let go.
            shutil.rmtree(store, ignore_errors=True)


def _used(store: Path) -> int:
    return store.stat().st_mtime_ns if store.exists() else 0


def _key(tokenizer: PreTrainedTokenizerBase, records: Sequence[Any], settings: Sequence[Any]) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not os.environ.get(KEY_VARIABLE) or backend is None or (data := digest_of(records)) is None:
        return None
    here = Path(__file__).parent
    parts = [
        backend.to_str(), json.dumps([tokenizer.chat_template, tokenizer.eos_token_id, tokenizer.all_special_tokens]),
        data, json.dumps(list(settings)), tokenizers.__version__, transformers.__version__,
        *((here / f"{name}.py").read_text(encoding="utf-8") for name in SOURCES),
    ]  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _open(folder: Path, make: Callable[[Coded], Any]) -> TokenRows[Any] | None:
    """A store, or None where there is none; one that is broken goes, so that it is made again."""
    try:
        rows = TokenRows(folder, make)
        os.utime(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not folder.is_dir():
            return None
        log.warning("%s cannot be read (%s); encoding again", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    log.debug("token ids of %s", folder)
    return rows


def _write(folder: Path, coded: Callable[[Counter[str]], Iterator[Coded]]) -> None:
    """Write a store beside its place and move it there; one that another process wrote meanwhile is as good."""
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=FOLDER))
    except OSError as error:
        log.warning("%s cannot be written (%s); token ids are held in memory", FOLDER, error.strerror)
        return
    try:
        _fill(temporary, coded)
        if not folder.exists():
            temporary.rename(folder)
        prune()
    except OSError as error:  # what is kept saves memory and time only
        if not folder.exists():
            log.warning("%s cannot be written (%s); token ids are held in memory", folder, error.strerror)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, coded: Callable[[Counter[str]], Iterator[Coded]]) -> None:
    """Write the examples as they come, a block at a time."""
    counts: Counter[str] = Counter()
    streams = {name: (folder / name).open("wb") for name in FILES}
    try:
        ids_end = lists = values_end = 0
        examples = coded(counts)
        starts = {name: [] if name in ("ids", "values") else [0] for name in FILES}
        buffers: dict[str, array[Any]] = {name: array(CODES[kind], starts[name]) for name, kind in FILES.items()}
        while True:
            for one in islice(examples, BLOCK):
                for ids in one.ids:
                    buffers["ids"].extend(ids)
                    ids_end += len(ids)
                    buffers["ends"].append(ids_end)
                lists, values_end = lists + len(one.ids), values_end + len(one.values)
                buffers["lists"].append(lists)
                buffers["values"].extend(one.values)
                buffers["value_ends"].append(values_end)
            if not buffers["lists"]:
                break
            for name, stream in streams.items():
                buffers[name].tofile(stream)
                del buffers[name][:]
        for stream in streams.values():
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        for stream in streams.values():
            stream.close()
    with (folder / COUNTS).open("w", encoding="utf-8") as told:
        json.dump({"counts": counts, "bytes": _sizes(folder)}, told)
        told.flush()
        os.fsync(told.fileno())


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a store."""
    return {name: (folder / name).stat().st_size for name in FILES}


def _mapped(file: Path, kind: Any) -> Any:
    """The numbers of a file. [N]."""
    # An empty file cannot be mapped.
    return np.memmap(file, kind, mode="r") if file.stat().st_size else np.empty(0, kind)
