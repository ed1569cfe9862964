"""Which registered versions were trained on some rows, told by each version's own lock file, raw and validated data."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, TypeAlias

from rlhf.data.raw_files import SUFFIXES
from rlhf.data.records import canonical_json
from rlhf.errors import BadInput
from tasks.commit_sources import pointed
from tasks.dvc_store import dvc_places, object_path, output_files
from tasks.forget_rows import Wanted, answers_in, find_rows
from tasks.git import commit_of, inside_git, read_blobs
from tasks.live_run import STAGE
from tasks.lock_file import LockedStage, lineage
from tasks.mlflow_store import StoreUnreachable, sqlite_file
from tasks.registry_config import RegistryConfig, load_registry_config
from tasks.reproduce_target import tagged_versions, version_lock
from tasks.settings import tracking_uri
from tasks.version_commit import COMMIT, version_record

Contents: TypeAlias = Mapping[str, set[str]]
"""Answers by prompt, as `tasks.forget_rows.FoundRows` has them."""
Verdict = Literal["trained", "held out", "maybe", "unknown"]
WORDS: dict[Verdict, str] = {
    "trained": "was trained on it",
    "held out": "had it in its held-out data",
    "maybe": "may have been trained on it (the data are no longer here)",
    "unknown": "is not known (its commit is not here)",
}
RAW = "data/raw/"
VALIDATE = "validate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Affected:
    """A version that has to do with the rows."""

    version: str
    stage: str
    verdict: Verdict
    aliases: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write it for a person."""
        named = f" (@{', @'.join(self.aliases)})" if self.aliases else ""
        return f"{self.version}{named}, made by {self.stage}, {WORDS[self.verdict]}"


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownVersion:
    """A version that the registry has, or that only has a tag here."""

    reference: str
    commit: str | None
    stage: str | None
    aliases: tuple[str, ...]


def affected_versions(root: Path, names: list[str], wanted: Wanted, present: Contents) -> list[Affected]:
    """Look through all registered versions of all names.

    Args:
        root: the project's root.
        names: raw files or folders, relative to data/raw, in which the rows are.
        wanted: the rows.
        present: what the rows of the present files say.

    Returns:
        Those that were trained on a row, held it out, or of which that can no longer be told.
    """
    config = load_registry_config(root)
    search = _Search(root, names, wanted, present)
    found = []
    for version in known_versions(root, config):
        if version.commit is None or version.stage is None:
            found.append(_affected(version, "unknown"))
        elif (verdict := search.verdict(version.commit, version.stage)) is not None:
            found.append(_affected(version, verdict))
    return found


def _affected(version: KnownVersion, verdict: Verdict) -> Affected:
    return Affected(version=version.reference, stage=version.stage or "?", verdict=verdict, aliases=version.aliases)


def known_versions(root: Path, config: RegistryConfig) -> Iterator[KnownVersion]:
    """List what the registry has, and what only has a tag here."""
    if not inside_git(root):
        return
    tagged = tagged_versions(root, config)
    listed = _listed(root, config)
    for key in sorted({*tagged, *listed}, key=lambda key: (config.names.index(key[0]), int(key[1]))):
        tags, aliases = listed.get(key, ({}, ()))
        commit = next((name for name in (tags.get(COMMIT), tagged.get(key)) if name and commit_of(root, name)), None)
        record = version_record(root, commit) if commit else None
        stage = tags.get(STAGE) or (record.stage if record else None)
        yield KnownVersion(reference="/".join(key), commit=commit, stage=stage, aliases=aliases)


def _listed(root: Path, config: RegistryConfig) -> dict[tuple[str, str], tuple[Mapping[str, str], tuple[str, ...]]]:
    """Ask the registry, where there is one."""
    local = sqlite_file(tracking_uri(root))
    if local is not None and not local.is_file():
        return {}
    from tasks.registry import versions

    try:
        found = [version for name in config.names for version in versions(root, name)]
    except StoreUnreachable:
        return {}
    return {(version.model, version.version): (version.tags, version.aliases) for version in found}


class _Search:
    """Answers about commits; each raw and validated file is read once, however many versions had it."""

    def __init__(self, root: Path, names: list[str], wanted: Wanted, present: Contents) -> None:
        self._root, self._names, self._wanted, self._present = root, names, wanted, present
        self._places = dvc_places(root)
        self._raw: dict[str, dict[str, set[str]] | None] = {}
        self._hits: dict[tuple[Path, str], bool] = {}

    def verdict(self, commit: str, stage: str) -> Verdict | None:
        """Judge the version of that commit and stage; None when it has nothing to do with the rows."""
        before = lineage(version_lock(self._root, commit), stage)
        pointers = [f"{RAW}{name.rstrip('/')}.dvc" for name in self._names]
        blobs = read_blobs(self._root, commit, pointers)
        raw = dict(entry for name, blob in blobs.items() for entry in pointed(name, blob))
        contents: dict[str, set[str]] = {}
        used = lost = False
        for path, md5 in raw.items():
            if not read_by(before.get(VALIDATE), path.removeprefix(RAW)):
                continue
            rows = self._contents(path, md5)
            used, lost = used or rows is None or bool(rows), lost or rows is None
            # Of a file whose bytes are gone, the present rows are the best that can be looked for.
            for prompt, answers in (self._present if rows is None else rows).items():
                contents.setdefault(prompt, set()).update(answers)
        if not used:
            return None
        if VALIDATE not in before:  # a commit of before versions had commits of their own
            return "maybe"
        splits = self._splits(before, contents)
        if splits["train"]:
            return "trained"
        if lost or None in splits.values():
            return "maybe"
        return "held out" if any(splits.values()) else None

    def _contents(self, path: str, md5: str) -> Contents | None:
        """Return prompts and answers of the rows in that version of a raw file, None when its bytes are gone."""
        if md5 not in self._raw:
            found: dict[str, set[str]] | None = {}
            for name, file in self._objects(path, md5):
                if file is None:
                    found = None
                    break
                if found is not None and name.endswith(SUFFIXES):
                    for prompt, answers in find_rows(file, self._wanted).contents.items():
                        found.setdefault(prompt, set()).update(answers)
            self._raw[md5] = found
        return self._raw[md5]

    def _splits(self, before: Mapping[str, LockedStage], contents: Contents) -> dict[str, bool | None]:
        """Tell whether the training and the held-out data hold one of the rows; None where they are gone."""
        outs = before[VALIDATE].outs
        read = {
            path: md5
            for name, entry in before.items()
            if name != VALIDATE
            for path, md5 in entry.deps.items()
            if path in outs
        }
        found: dict[str, bool | None] = {"train": False, "held out": False}
        for path, md5 in read.items():
            for name, file in self._objects(path, md5):
                part = "train" if Path(name).name == "train.jsonl" else "held out"
                if file is None:
                    # A listing that is gone may have named training data.
                    parts = ("train", "held out") if not name else (part,)
                    found |= {one: found[one] or None for one in parts}
                elif self._holds(file, contents):
                    found[part] = True
        return found

    def _objects(self, path: str, md5: str) -> Iterator[tuple[str, Path | None]]:
        """Yield name and file of each part of an output, None for a file that is not in the cache."""
        try:
            files = output_files(self._places, md5, path)
        except BadInput:
            yield "", None
            return
        for name, value in files.items():
            file = object_path(self._places.cache, value)
            yield name, file if file.is_file() else None

    def _holds(self, file: Path, contents: Contents) -> bool:
        key = (file, canonical_json({prompt: sorted(answers) for prompt, answers in contents.items()}))
        if key not in self._hits:
            with file.open(encoding="utf-8") as stream:
                self._hits[key] = any(_same_content(json.loads(line), contents) for line in stream if line.strip())
        return self._hits[key]


def _same_content(record: Mapping[str, Any], contents: Contents) -> bool:
    """Tell whether a validated record came of one of the rows: its prompt, and one of its answers if it has any."""
    answers = contents.get(canonical_json(record["prompt"]))
    if answers is None:
        return False
    own = answers_in(record)
    return not own or not answers.isdisjoint(own)


def read_by(validate: LockedStage | None, name: str) -> bool:
    """Tell whether `validate.files` names a raw file or folder; yes when there is no record of it."""
    settings = validate.params.get(VALIDATE) if validate else None
    files = settings.get("files") if isinstance(settings, Mapping) else None
    if not isinstance(files, list):
        return True
    return any(
        named.rstrip("/") == name or name.startswith(f"{named.rstrip('/')}/") or named.startswith(f"{name}/")
        or fnmatch(name, named)
        for named in map(str, files)
    )  # fmt: skip
