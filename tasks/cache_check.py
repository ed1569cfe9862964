"""Whether DVC's cache still holds what it should, byte for byte.

DVC trusts an object of its cache as long as it is there and read-only: it restores changed bytes without a word and
then calls everything up to date (tried with 3.67). So every object is hashed here once, and again whenever its size,
inode or time of change is another.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.outputs import atomic_writer
from tasks.dvc_store import FOLDER_SUFFIX, dvc_places, object_path, remote_has
from tasks.settings import tmp_dir

Source = Literal["work tree", "remote"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """What is wrong with one output in the cache."""

    path: str
    """The output, from the root."""
    md5: str
    objects: tuple[str, ...]
    """Hashes of the objects that are missing or hold other bytes."""
    total: int
    """Number of objects of the output, as far as known."""
    source: Source | None
    """Where intact copies of them are; None where there are none."""
    absent: bool
    """Whether the cache holds nothing of it, as in a fresh clone."""

    @property
    def nowhere(self) -> bool:
        """Whether the output does not exist, which is no damage: its stage has yet to run here."""
        return self.absent and self.source is None

    def __str__(self) -> str:
        """Say it to a person."""
        count = f"{len(self.objects)} of {self.total} files" if self.total > 1 else "its file"
        where = {
            "work tree": "`ratchet run` copies them from the work tree",
            "remote": "`ratchet run` fetches them from the remote",
            None: "and there is no other copy",
        }
        return f"missing or damaged in DVC's cache ({count}), {where[self.source]}"


class CacheCheck:
    """Looks at the objects of one project's cache, and remembers those that were intact."""

    def __init__(self, root: Path, *, deep: bool = False) -> None:
        """Prepare.

        Args:
            root: the project's root.
            deep: hash every object, also those that look as they did when they were last hashed.
        """
        self.places = dvc_places(root)
        self._root, self._file = root, tmp_dir(root) / "cache-seen.json"
        self._seen: dict[str, list[int]] = {} if deep else self._read()
        self._changed = False

    def damage(self, path: str, md5: str) -> Damage | None:
        """Look at one output.

        Args:
            path: from the root.
            md5: its hash, as in dvc.lock.

        Returns:
            None when all of it is there.
        """
        names = self._objects(md5)
        bad = [name for name in names if not self.intact(name)]
        if not bad:
            return None
        in_tree = self.in_work_tree(path, md5)
        source: Source | None = "work tree" if set(bad) <= set(in_tree) else None
        if source is None and self.places.remote is not None and remote_has(self._root, names):
            source = "remote"
        absent = not object_path(self.places.cache, md5).exists()
        return Damage(path=path, md5=md5, objects=tuple(bad), total=len(names), source=source, absent=absent)

    def intact(self, name: str) -> bool:
        """Tell whether an object is there and its bytes have the hash that is its name."""
        file = object_path(self.places.cache, name)
        try:
            stat = file.stat()
        except OSError:
            return False
        mark = [stat.st_size, stat.st_ino, stat.st_ctime_ns]
        if self._seen.get(name) == mark:
            return True
        if md5_of(file) != name.removesuffix(FOLDER_SUFFIX):
            return False
        self._seen[name], self._changed = mark, True
        return True

    def in_work_tree(self, path: str, md5: str) -> dict[str, bytes | Path]:
        """Find the output's objects in the work tree by the bytes that lie there now.

        Returns:
            By hash: the file that holds the same bytes, or the bytes themselves of a folder's listing.
        """
        place = self._root / path
        if not md5.endswith(FOLDER_SUFFIX):
            return {md5: place} if place.is_file() and md5_of(place) == md5 else {}
        found: dict[str, bytes | Path] = {}
        rows = []
        for file in sorted(place.rglob("*")) if place.is_dir() else ():
            if file.is_file():
                name = md5_of(file)
                found[name] = file
                rows.append({"md5": name, "relpath": file.relative_to(place).as_posix()})
        listing = json.dumps(sorted(rows, key=lambda row: row["relpath"]), sort_keys=True).encode()
        if hashlib.md5(listing).hexdigest() == md5.removesuffix(FOLDER_SUFFIX):
            found[md5] = listing
        return found

    def remember(self) -> None:
        """Keep what was found intact, so that the next look is quick."""
        if self._changed:
            with atomic_writer(self._file) as stream:
                json.dump(self._seen, stream)
            self._changed = False

    def _objects(self, md5: str) -> list[str]:
        """Name all objects of an output; of a folder whose listing is lost, the listing alone."""
        if not md5.endswith(FOLDER_SUFFIX) or not self.intact(md5):
            return [md5]
        entries: list[dict[str, Any]] = json.loads(object_path(self.places.cache, md5).read_bytes())
        return [md5, *sorted({str(entry["md5"]) for entry in entries})]

    def _read(self) -> dict[str, list[int]]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def all_damage(root: Path, outputs: Iterable[tuple[str, str]], *, deep: bool = False) -> list[Damage]:
    """Look at several outputs, given as (path, md5); see `CacheCheck`."""
    check = CacheCheck(root, deep=deep)
    found = [check.damage(path, md5) for path, md5 in outputs]
    check.remember()
    return [damage for damage in found if damage is not None]


def md5_of(file: Path) -> str:
    """Hash a file as DVC does."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
