"""Whether a commit's tree is what a recorded output was made from: commands, parameters, sources, raw data.

DVC's lock file holds the hash of everything that a stage read, so the question has an exact answer, whatever has been
committed, accepted or edited since.
"""

import hashlib
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.errors import BadInput
from tasks.changes import differences
from tasks.dvc_store import DvcPlaces, dvc_places, output_files
from tasks.git import files_of, read_blobs
from tasks.lock_file import LockedStage

PARAMS = "params.yaml"


def first_that_fits(root: Path, commits: Sequence[str], stages: Mapping[str, LockedStage]) -> tuple[str, list[str]]:
    """Return the first commit without differences, else the first one with its differences.

    Args:
        root: the project's root.
        commits: at least one.
        stages: entries of the lock file.
    """
    first: list[str] = []
    for number, commit in enumerate(commits):
        found = source_differences(root, commit, stages)
        if not found:
            return commit, []
        first = first if number else found
    return commits[0], first


def source_differences(root: Path, commit: str, stages: Mapping[str, LockedStage]) -> list[str]:
    """Compare a commit's tree with what stages were made from.

    Args:
        root: the project's root.
        commit: the commit.
        stages: entries of the lock file; one that reads another's output is compared with that entry.

    Returns:
        Sentences, one for each thing that differs; a folder of which not every file is known here counts as equal.
    """
    tree = _Tree(root, commit, stages)
    found = [*tree.settings()]
    for name, entry in stages.items():
        for path, recorded in entry.deps.items():
            present = tree.hash_of(path)
            if present is not None and present != recorded:
                found.append(f"{path} is {present[:7]}, and {name} was made from {recorded[:7]}")
    return list(dict.fromkeys(found))


class _Tree:
    """The files of one commit, as DVC would hash them."""

    def __init__(self, root: Path, commit: str, stages: Mapping[str, LockedStage]) -> None:
        self._root, self._commit, self._stages = root, commit, stages
        self._files = files_of(root, commit)
        self._outs = {path: md5 for entry in stages.values() for path, md5 in entry.outs.items()}
        deps = {path for entry in stages.values() for path in entry.deps}
        wanted = {name for path in deps for name in self._files if name == path or name.startswith(f"{path}/")}
        pointers = {name for name in self._files if name.endswith(".dvc")}
        self._blobs = read_blobs(root, commit, sorted({*wanted, *pointers, PARAMS, "dvc.yaml"} & self._files))
        self._pointed = {path: md5 for name in pointers for path, md5 in pointed(name, self._blobs[name])}
        self._places: DvcPlaces | None = None

    def settings(self) -> Iterator[str]:
        """Parameters and commands that differ."""
        from ruamel.yaml import YAML

        loader = YAML(typ="safe")
        params = loader.load(io.BytesIO(self._blobs.get(PARAMS, b""))) or {}
        graph = (loader.load(io.BytesIO(self._blobs.get("dvc.yaml", b""))) or {}).get("stages") or {}
        for name, entry in self._stages.items():
            for key, recorded in entry.params.items():
                for leaf, old, new in differences(key, recorded, _lookup(params, key)):
                    yield f"{PARAMS}: {leaf} is {_text(new)}, and {name} was made with {_text(old)}"
            command = (graph.get(name) or {}).get("cmd")
            if command is None:
                yield f"dvc.yaml has no stage {name}"
            elif isinstance(command, str) and "${" not in command and command.split() != entry.cmd.split():
                yield f"dvc.yaml: the command of {name} is not the one that it was made with"

    def hash_of(self, path: str) -> str | None:
        """Return DVC's hash of a dependency in this tree, None where it cannot be told from here."""
        if path in self._outs:
            return self._outs[path]
        if path in self._pointed:
            return self._pointed[path]
        if path in self._blobs:
            return _md5(self._blobs[path])
        inside = {name: _md5(blob) for name, blob in self._blobs.items() if name.startswith(f"{path}/")}
        for name, md5 in {**self._outs, **self._pointed}.items():
            if name.startswith(f"{path}/"):
                listed = self._listing(name, md5)
                if listed is None:
                    return None
                inside |= listed
        if not inside:
            return None
        rows = [{"md5": md5, "relpath": name.removeprefix(f"{path}/")} for name, md5 in inside.items()]
        ordered = sorted(rows, key=lambda row: row["relpath"])
        return _md5(json.dumps(ordered, sort_keys=True).encode()) + ".dir"

    def _listing(self, path: str, md5: str) -> dict[str, str] | None:
        """Return the files of a tracked file or folder with their hashes, None when the listing is not here."""
        if not md5.endswith(".dir"):
            return {path: md5}
        self._places = self._places or dvc_places(self._root)
        try:
            return {f"{path}/{name}": value for name, value in output_files(self._places, md5, path).items()}
        except BadInput:
            return None


def pointed(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Yield path and hash of what a `.dvc` file points to.

    Args:
        name: the pointer's own path from the project's root.
        content: its bytes.
    """
    import yaml

    document = yaml.safe_load(content) or {}
    folder = PurePosixPath(name).parent / str(document.get("wdir", "."))
    for out in document.get("outs") or []:
        if "path" in out and "md5" in out:
            yield posixpath.normpath(folder / str(out["path"])), str(out["md5"])


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _lookup(params: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        params = params.get(part) if isinstance(params, Mapping) else None
    return params


def _text(value: Any) -> str:
    return "absent" if value is None or type(value) is object else json.dumps(value, default=str)
