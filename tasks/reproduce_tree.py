"""A work tree for rebuilding: the version's own code and settings, a DVC cache of its own, and only raw data in it."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput, StageFailed
from tasks.commit_sources import pointed
from tasks.dvc_store import DvcPlaces, dvc_places, object_path, output_files
from tasks.git import files_of, git, prefix, read_blobs, run_git
from tasks.graph import Graph, load_graph
from tasks.lock_file import LOCK_FILE
from tasks.process import run_supervised
from tasks.reproduce_target import Target
from tasks.settings import environment, tmp_dir

MARKER = Path(".ratchet/tmp/reproduce.json")
"""Says in the work tree that it is ours, and of what; written when it is complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildTree:
    """A work tree that is ready to compute."""

    folder: Path
    """Top of the work tree."""
    project: Path
    """The project in it."""
    env: Mapping[str, str]
    """Variables on top of `tasks.settings.environment`."""
    graph: Graph
    computed: tuple[str, ...]
    """Stages to compute, in order."""
    resumed: bool
    """An earlier call was interrupted here."""


def default_folder(root: Path, target: Target) -> Path:
    """Return where a version is rebuilt unless a person names another place."""
    return tmp_dir(root) / "reproduce" / f"{target.name}-v{target.number}-{target.commit[:8]}"


def prepare(
    root: Path, target: Target, folder: Path, *, start: str | None, on_line: Callable[[str], None]
) -> RebuildTree:
    """Make the work tree, or take up the one that an interrupted call has left.

    Args:
        root: the project's root.
        target: the version.
        folder: where.
        start: the first stage to compute; None computes all.
        on_line: told what is going on.

    Raises:
        BadInput: the folder holds something else, there is no such stage, raw data are nowhere to be found.
        StageFailed: DVC could not do what it was asked.
    """
    project = folder / prefix(root)
    identity = {"commit": target.commit, "from": start}
    resumed = _identity(project) == identity
    if not resumed:
        _make(root, target, folder, project)
    env = variables(project)
    _require_own_code(project, env)
    graph = load_graph(project)
    needed = graph.until(target.stage)
    if start is not None and start not in needed:
        raise BadInput(f"--from {start}: {target.reference} is made by {', '.join(needed)}; name one of these")
    computed = tuple(name for name in needed if start is None or name == start or start in graph.ancestors(name))
    if not resumed:
        # Nothing that was recorded may answer for what is to be computed.
        (project / LOCK_FILE).unlink(missing_ok=True)
        _Filler(root, target, project, env, on_line).fill(graph, computed)
        (project / MARKER).write_text(json.dumps(identity), encoding="utf-8")
    return RebuildTree(folder=folder, project=project, env=env, graph=graph, computed=computed, resumed=resumed)


def remove(root: Path, folder: Path) -> None:
    """Remove a work tree and git's note of it."""
    run_git(root, "worktree", "remove", "--force", "--force", str(folder))
    shutil.rmtree(folder, ignore_errors=True)


def variables(project: Path) -> dict[str, str]:
    """Return what keeps processes inside the work tree, whatever the present environment says."""
    tmp = tmp_dir(project)
    return {
        "RATCHET_ROOT": str(project),
        "DVC_SITE_CACHE_DIR": str(tmp / "dvc"),
        "MPLCONFIGDIR": str(tmp / "matplotlib"),
        "TORCH_EXTENSIONS_DIR": str(tmp / "torch_extensions"),
        # `python -m` puts the current folder first, so the tree's own `rlhf` is imported, not the installed one.
        "PYTHONSAFEPATH": "",
        "PYTHONPATH": "",
        "PYTHONDONTWRITEBYTECODE": "",
    }


def _identity(project: Path) -> Any:
    try:
        return json.loads((project / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _make(root: Path, target: Target, folder: Path, project: Path) -> None:
    ours = folder.parent == tmp_dir(root) / "reproduce" or _identity(project) is not None
    if folder.exists() and not ours and any(folder.iterdir()):
        raise BadInput(f"{folder}: is not empty and no work tree of `ratchet reproduce`; name another --folder")
    remove(root, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Twice: a work tree whose folder was removed by hand is still in git's books.
    git(root, "worktree", "add", "--force", "--force", "--detach", str(folder), target.commit)
    tmp_dir(project)


def _require_own_code(project: Path, env: Mapping[str, str]) -> None:
    """Make sure that stages will import the tree's own code although another copy is installed."""
    code = "import importlib.util as u, sys; sys.stdout.write(str(u.find_spec('rlhf').origin))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env={**environment(project), **env},
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if (project / "rlhf").is_dir() and Path(done.stdout).resolve().parent != (project / "rlhf").resolve():
        raise StageFailed(
            f"{project}: stages would import rlhf from {done.stdout or 'nowhere'} and not from there; unset what puts "
            "another folder before the current one"
        )


class _Filler:
    """Brings raw data, and with `--from` earlier outputs, into the tree, checked by their hashes."""

    def __init__(
        self, root: Path, target: Target, project: Path, env: Mapping[str, str], on_line: Callable[[str], None]
    ) -> None:
        self._root, self._target, self._project, self._env, self._on_line = root, target, project, env, on_line
        self._theirs = dvc_places(root)
        self._cache = project / ".dvc" / "cache"

    def fill(self, graph: Graph, computed: Iterable[str]) -> None:
        """Put everything in place that the computed stages read and do not make."""
        read = {dep for name in computed for dep in graph.stages[name].deps}
        self._configure()
        pointers = [name for name in files_of(self._root, self._target.commit) if name.endswith(".dvc")]
        blobs = read_blobs(self._root, self._target.commit, pointers)
        raw = {path: md5 for name, blob in blobs.items() for path, md5 in pointed(name, blob)}
        earlier = {name: entry for name, entry in self._target.lock.items() if name not in set(computed)}
        made = {path: md5 for entry in earlier.values() for path, md5 in entry.outs.items()}
        self._write_lock(set(earlier))
        wanted = {path: md5 for path, md5 in {**made, **raw}.items() if any(_overlap(path, dep) for dep in read)}
        for path, md5 in wanted.items():
            if not self._link(path, md5):
                self._fetch(path, md5, raw=path in raw)
        if wanted:
            self._dvc("checkout", "--force", *wanted)
        for path, md5 in wanted.items():
            self._check(path, md5)

    def _configure(self) -> None:
        """Give the tree a cache of its own and this project's remotes, whose relative addresses hold from here only."""
        from dvc.config import Config

        ours: dict[str, Any] = Config(str(self._root / ".dvc"))
        with Config(str(self._project / ".dvc")).edit("local", validate=False) as local:
            local["cache"] = {"dir": str(self._cache)}
            local["remote"] = {name: dict(remote) for name, remote in ours.get("remote", {}).items()}
            if ours.get("core", {}).get("remote"):
                local["core"] = {"remote": ours["core"]["remote"]}
        (self._project / ".dvc" / "config.local").chmod(0o600)

    def _write_lock(self, names: set[str]) -> None:
        """Let the tree's lock file tell of the stages that are not computed, and of no others."""
        from ruamel.yaml import YAML

        if not names:
            return
        yaml = YAML(typ="safe")
        blob = read_blobs(self._root, self._target.commit, [LOCK_FILE])[LOCK_FILE]
        document = yaml.load(io.BytesIO(blob))
        document["stages"] = {name: entry for name, entry in document["stages"].items() if name in names}
        with (self._project / LOCK_FILE).open("w", encoding="utf-8") as stream:
            yaml.dump(document, stream)

    def _link(self, path: str, md5: str) -> bool:
        """Take an output out of the project's cache; False when it is not there as it should be."""
        return self._link_object(md5) and all(
            self._link_object(value) for value in output_files(self._theirs, md5, path).values()
        )

    def _link_object(self, md5: str) -> bool:
        source, target = object_path(self._theirs.cache, md5), object_path(self._cache, md5)
        if not _is(source, md5):
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            try:
                os.link(source, target)
            except OSError:  # another file system
                shutil.copyfile(source, target)
        return True

    def _fetch(self, path: str, md5: str, *, raw: bool) -> None:
        what = "raw data" if raw else "an earlier output"
        remedy = "bring the file back into DVC's cache" if raw else "leave --from out, and it is computed"
        if self._theirs.remote is None:
            raise BadInput(
                f"{path} ({md5}): {what} of {self._target.reference}, and the DVC cache has not got it, and there is "
                f"no remote; {remedy}, or configure the remote that has it with `dvc remote add -d`"
            )
        self._on_line(f"fetching {path} from {self._theirs.remote}")
        said = ""
        try:
            self._dvc("fetch", path)
        except StageFailed as error:
            said = f" ({error})"
        if not self._whole(path, md5):  # DVC ends well also when the remote has not got everything
            raise BadInput(
                f"{path} ({md5}): {what} of {self._target.reference}, and neither the DVC cache nor the remote "
                f"{self._theirs.remote} has it{said}; {remedy}"
            )

    def _whole(self, path: str, md5: str) -> bool:
        """Tell whether the tree's own cache has an output with all its files."""
        if not _is(object_path(self._cache, md5), md5):
            return False
        files = output_files(DvcPlaces(cache=self._cache, remote=None), md5, path)
        return all(_is(object_path(self._cache, value), value) for value in files.values())

    def _check(self, path: str, md5: str) -> None:
        files = output_files(DvcPlaces(cache=self._cache, remote=None), md5, path)
        place = self._project / path
        wrong = [name for name, value in files.items() if not _is(place / name if place.is_dir() else place, value)]
        if wrong:
            raise StageFailed(f"{place}: {wrong[0]} has not the recorded bytes after `dvc checkout`; check the disk")

    def _dvc(self, *words: str) -> None:
        command = [sys.executable, "-P", "-m", "dvc", "--wait-for-lock", words[0], "--quiet", *words[1:]]
        env = {**environment(self._project), **self._env}
        ended = run_supervised(command, cwd=self._project, env=env, on_line=lambda line: None)
        if ended.exit_code != 0:
            said = "\n".join(ended.lines).rpartition("ERROR: ")[2].partition("\n")[0].strip()
            raise StageFailed(f"`dvc {words[0]}` in {self._project} failed: {said or f'exit code {ended.exit_code}'}")


def _overlap(path: str, dependency: str) -> bool:
    return path == dependency or path.startswith(f"{dependency}/") or dependency.startswith(f"{path}/")


def _is(path: Path, md5: str) -> bool:
    """Tell whether a file has the bytes of a hash; the listing of a folder bears it with a suffix."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest() == md5.removesuffix(".dir")
