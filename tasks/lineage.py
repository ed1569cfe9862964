"""From a registered version back to its data and code, and from a data file forward to the versions made from it.

A version's commit holds the lock file and the pointers of that time, so both questions have exact answers. Where the
commit is not here, the registry's own record of the lock file has to do.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from tasks.commit_sources import pointed
from tasks.dvc_store import DvcPlaces, dvc_places, output_files
from tasks.environments import TAGGED, Environment
from tasks.forget_versions import RAW, VALIDATE, known_versions, read_by
from tasks.git import files_of, read_blobs
from tasks.lock_file import LockedStage, lineage, params_hash, read_lock
from tasks.mlflow_store import StoreUnreachable, sqlite_file
from tasks.registry import version, versions
from tasks.registry_config import load_registry_config
from tasks.registry_lookup import Version, opened
from tasks.reproduce_target import REFERENCE, find_target, version_lock
from tasks.settings import tracking_uri
from tasks.snapshot import TAGS
from tasks.stage_outputs import MODELS

DATA = "data/"
POINTER = ".dvc"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a version was made from."""

    reference: str
    aliases: tuple[str, ...]
    stage: str
    output_md5: str
    commit: str | None
    tag: str | None
    decision: str
    """What became of it; "" while nothing was decided."""
    stages: Mapping[str, LockedStage]
    """Lock entries of its stage and of all before it."""
    data: Mapping[str, str]
    """Hash by path of what no stage made: raw data and base models."""
    registered: Mapping[str, str]
    """Versions by the stage of the lineage that made them."""
    environments: Mapping[str, Environment | None]
    notes: tuple[str, ...] = field(default=())

    def document(self) -> dict[str, Any]:
        """Return it for `--json`."""
        own = self.stages[self.stage]
        return {
            "version": self.reference, "aliases": list(self.aliases), "stage": self.stage, "output": self.output_md5,
            "commit": self.commit, "tag": self.tag, "params_hash": params_hash(own), "decision": self.decision,
            "data": dict(self.data), "parents": {name: self.registered[name] for name in self.parents(self.stage)
                                                if name in self.registered},
            "stages": [
                {
                    "name": name, "cmd": entry.cmd, "version": self.registered.get(name),
                    "params_hash": params_hash(entry), "params": dict(entry.params), "reads": dict(entry.deps),
                    "writes": dict(entry.outs), "environment": self.environments.get(name),
                }
                for name, entry in self.stages.items()
            ],
            "notes": list(self.notes),
        }  # fmt: skip

    def parents(self, stage: str) -> list[str]:
        """Name the stages that made what a stage read."""
        reads = self.stages[stage].deps
        return [
            name
            for name, entry in self.stages.items()
            if name != stage and any(_covers(dep, out) for dep in reads for out in entry.outs)
        ]

    def sources(self, stage: str) -> dict[str, str]:
        """Return what a stage read and no stage made, with hashes."""
        reads = self.stages[stage].deps
        return {path: md5 for path, md5 in self.data.items() if any(_covers(dep, path) for dep in reads)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A version that was made from a file."""

    version: str
    aliases: tuple[str, ...]
    stage: str
    md5: str | None
    """Of the file at that time; None where it lay in a folder whose listing is not here."""
    same: bool | None
    """Whether these are the present bytes; None where that cannot be told."""


def names_version(root: Path, text: str) -> bool:
    """Tell whether a person means a version, and not a file."""
    config, match = load_registry_config(root), REFERENCE.fullmatch(text)
    return match is not None and bool({match["name"], config.prefix + match["name"]} & set(config.names))


def origin_of(root: Path, reference: str) -> Origin:
    """Trace a version.

    Args:
        root: the project's root.
        reference: policy@champion, policy/3, reward-model/2, or a tag such as ratchet/policy/v3.

    Raises:
        BadInput: there is no such version, or nothing tells how it was made.
    """
    listed = _listed(root)
    try:
        found = find_target(root, reference)
    except BadInput as error:
        return _from_registry(root, reference, listed, error)
    name = f"{TAGS.removeprefix('refs/tags/')}/{found.name}/v{found.number}"
    own = listed.get(found.reference)
    return Origin(
        reference=found.reference, aliases=own.aliases if own else (), stage=found.stage, output_md5=found.output_md5,
        commit=found.commit, tag=name, decision=own.decision if own else "", stages=found.lock,
        data=_data(found.lock, _pointers(root, found.commit)), registered=_registered(found.lock, listed),
        environments=found.environments, notes=found.notes,
    )  # fmt: skip


def versions_from(root: Path, file: Path) -> tuple[str, str | None, list[Use]]:
    """Find the versions that were made from a file.

    Args:
        root: the project's root.
        file: raw data, a base model or what a stage made of it, or its .dvc pointer; it need not be there any more.

    Returns:
        Its path in the project; the hash of its present bytes, None when it is gone; the versions.

    Raises:
        BadInput: it lies outside of the project, or neither is there nor was ever read.
    """
    path = _inside(root, file)
    places, present = dvc_places(root), _present(root, path)
    uses = []
    for known in known_versions(root, load_registry_config(root)):
        if known.commit is None or known.stage is None:
            continue
        before = lineage(version_lock(root, known.commit), known.stage)
        read = {**_data(before, _pointers(root, known.commit))}
        for entry in before.values():
            read |= {name: md5 for name, md5 in {**entry.deps, **entry.outs}.items() if name.startswith(DATA)}
        md5s = list(_hashes(places, read, path))
        if md5s:
            then = next((md5 for md5 in md5s if md5), None)
            same = None if then is None or present is None else then == present
            uses.append(
                Use(version=known.reference, aliases=known.aliases, stage=known.stage, md5=then, same=same)
            )  # fmt: skip
    if present is None and not uses and not (root / path).exists():
        raise BadInput(f"{file}: no version of that name, no such file, and no version was made from one; `ratchet "
                       "status` shows versions, data lie in data/raw")  # fmt: skip
    return path, present, uses


def _hashes(places: DvcPlaces, read: Mapping[str, str], path: str) -> Iterator[str | None]:
    """Yield what recorded files or folders say of a path; nothing when they do not have it."""
    if path in read:
        yield read[path]
        return
    for folder, md5 in read.items():
        if not path.startswith(f"{folder}/") or not md5.endswith(".dir"):
            continue
        try:
            listing = output_files(places, md5, folder)
        except BadInput:
            if any(_covers(folder, other) and other != folder for other in read):
                continue  # a folder of pointers, which speak for themselves
            yield None
        else:
            if path.removeprefix(f"{folder}/") in listing:
                yield listing[path.removeprefix(f"{folder}/")]


def _data(stages: Mapping[str, LockedStage], pointers: Mapping[str, str]) -> dict[str, str]:
    """Return what the stages read and none of them made: by the pointers where there are some, else as they read it."""
    made = {out for entry in stages.values() for out in entry.outs}
    reads = {path: md5 for entry in stages.values() for path, md5 in entry.deps.items() if path.startswith(DATA)}
    found = {
        path: md5
        for path, md5 in pointers.items()
        if any(_covers(dep, path) for dep in reads)
        and (not path.startswith(RAW) or read_by(stages.get(VALIDATE), path.removeprefix(RAW)))
    }
    for dep, md5 in reads.items():
        if not any(_covers(dep, other) for other in (*made, *pointers)) and not any(_covers(out, dep) for out in made):
            found[dep] = md5
    return found


def _pointers(root: Path, commit: str) -> dict[str, str]:
    names = [name for name in files_of(root, commit) if name.startswith(DATA) and name.endswith(POINTER)]
    return dict(entry for name, blob in read_blobs(root, commit, names).items() for entry in pointed(name, blob))


def _covers(folder: str, path: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _listed(root: Path) -> dict[str, Version]:
    """Return all versions by reference; none where there is no registry or it is away."""
    local = sqlite_file(tracking_uri(root))
    if local is not None and not local.is_file():
        return {}
    try:
        found = [entry for name in load_registry_config(root).names for entry in versions(root, name)]
    except StoreUnreachable:
        return {}
    return {entry.reference: entry for entry in found}


def _registered(stages: Mapping[str, LockedStage], listed: Mapping[str, Version]) -> dict[str, str]:
    """Name the version of each stage's model, the oldest where several have the same weights."""
    by_weights = {(entry.stage, entry.output_md5): name for name, entry in listed.items()}  # newest first, oldest wins
    found = {name: by_weights.get((name, entry.outs.get(MODELS + name, ""))) for name, entry in stages.items()}
    return {name: reference for name, reference in found.items() if reference is not None}


def _from_registry(root: Path, reference: str, listed: Mapping[str, Version], why: BadInput) -> Origin:
    """Trace by the record that MLflow keeps with the run of a version."""
    if not listed:
        raise why
    own = listed[version(root, reference.removeprefix("ratchet/")).reference]
    entries = _artifact(root, own, "dvc/lineage.json")
    notes = [f"by the registry's record alone: {why}"]
    if entries is None:
        alone = _artifact(root, own, "dvc/stage.json")
        if alone is None:
            raise why
        entries = {own.stage: alone}
        notes.append("what its parents were made from was not recorded; their own lineage may tell")
    keys = ("cmd", "deps", "params", "outs")
    stages = {name: LockedStage(name=name, **{key: entry[key] for key in keys}) for name, entry in entries.items()}
    return Origin(
        reference=own.reference, aliases=own.aliases, stage=own.stage, output_md5=own.output_md5, commit=None, tag=None,
        decision=own.decision, stages=stages, data=_data(stages, {}), registered=_registered(stages, listed),
        environments=_artifact(root, own, "environment.json") or {}, notes=tuple(notes),
    )  # fmt: skip


def _artifact(root: Path, entry: Version, path: str) -> Any:
    """Read a JSON document that was logged with a version's run; None where there is none."""
    from mlflow.exceptions import MlflowException

    with opened(root) as (client, _), tempfile.TemporaryDirectory(prefix="ratchet-lineage-") as folder:
        try:
            return json.loads(Path(client.download_artifacts(entry.run_id, path, folder)).read_text(encoding="utf-8"))
        except (MlflowException, OSError):
            return None


def _inside(root: Path, file: Path) -> str:
    candidates = [file] if file.is_absolute() else [Path.cwd() / file, root / file]
    for place in candidates:
        if place.resolve().is_relative_to(root.resolve()) and (place is candidates[-1] or place.exists()):
            return str(place.resolve().relative_to(root.resolve())).removesuffix(POINTER)
    raise BadInput(f"{file}: lies outside of the project {root}; versions are made from what is inside")


def _present(root: Path, path: str) -> str | None:
    """Return the hash of the present bytes: as pointer or lock file say, else of the file; None where nothing tells."""
    pointer, place = root / f"{path}{POINTER}", root / path
    if pointer.is_file():
        return next((md5 for name, md5 in pointed(f"{path}{POINTER}", pointer.read_bytes()) if name == path), None)
    recorded = {out: md5 for entry in read_lock(root).values() for out, md5 in entry.outs.items()}
    if not place.is_file():
        return recorded.get(path)
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def facts(environment: Environment | None) -> str:
    """Write in one line what a stage was computed on."""
    shown = [f"{name} {environment[name]}" for name in TAGGED if environment and environment.get(name)]
    return ", ".join(shown) or "not known"
