"""The commit that reproduces a version: the run's tree, with the lock file and metrics of what the run has made.

The tree of a run is snapshotted at its start, when `dvc.lock` still tells of the run before. A version's commit is a
child of that one which holds the present `dvc.lock` and metrics, and whose message says which output it is about and
what that was computed on; so `git worktree add DIR ratchet/policy/v3`, then `dvc checkout`, gives code, parameters and
outputs, and `dvc gc --all-tags` keeps them. Branch, index and files of the user stay as they are.
"""

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from tasks.commit_sources import first_that_fits
from tasks.git import git, inside_git, prefix
from tasks.lock_file import LOCK_FILE, LockedStage, lineage
from tasks.settings import tmp_dir
from tasks.snapshot import RUNS
from tasks.stage_outputs import matches_lock

COMMIT = "ratchet.git_commit"
"""Tag of a registered version that names the commit."""
MARK = "Ratchet-Version:"
CANDIDATES = 50
"""Runs that are looked through for the tree that an output was made from."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionRecord:
    """What the message of a version's commit says."""

    stage: str
    output_md5: str
    environments: Mapping[str, Mapping[str, Any] | None]
    """What each stage of the lineage was computed on, None where that is not known."""
    differences: Sequence[str] = ()
    """Where the tree is not what the lock file says the outputs were made from."""


def commit_version(
    root: Path,
    base: str | None,
    stage: str,
    output_md5: str,
    lock: Mapping[str, LockedStage],
    environments: Mapping[str, Mapping[str, Any] | None],
) -> str | None:
    """Make the commit of one output.

    The tree is that of `base` when its sources, settings and raw data are those that the lock file recorded; else that
    of the newest run for which this holds (MLflow was down and the user went on working); else that of `base` all the
    same, and the message says what differs.

    Args:
        root: the project's root.
        base: commit of the run, or of the tree as it stands.
        stage: the stage that made the output.
        output_md5: hash of the output.
        lock: the present lock file.
        environments: see `VersionRecord`.

    Returns:
        The commit, which no ref names yet; None without a base or outside git.

    Raises:
        BadInput: git refuses.
    """
    if base is None or not inside_git(root):
        return None
    wanted = lineage(lock, stage)
    chosen, differences = first_that_fits(root, [base, *_runs(root, base)], wanted)
    if differences:
        log.warning("%s %s: the tree differs from what it was made from: %s", stage, output_md5[:8], differences[0])
    metrics = [path for entry in wanted.values() for path in entry.outs if path.startswith("data/metrics/")]
    kept = [path for entry in wanted.values() for path in metrics if matches_lock(root, entry, path)]
    tree = _tree_with(root, chosen, [LOCK_FILE, *dict.fromkeys(kept)])
    record = {"stage": stage, "output_md5": output_md5, "differences": differences, "environments": environments}
    message = (
        f"ratchet: {stage} {output_md5[:8]}\n\nThe tree that it was made from, with the run's lock file and metrics."
        f"\n\n{MARK} {json.dumps(record, sort_keys=True)}\n"
    )
    return git(root, "commit-tree", tree, "-p", chosen, "-F", "-", feed=message.encode())


def version_record(root: Path, commit: str) -> VersionRecord | None:
    """Read the message of a version's commit; None for a commit that is not one."""
    text = git(root, "log", "-1", "--format=%B", commit)
    _, found, rest = text.partition(f"\n{MARK} ")
    if not found:
        return None
    try:
        return VersionRecord(**json.loads(rest.partition("\n")[0]))
    except (ValueError, TypeError) as error:
        raise BadInput(
            f"commit {commit[:12]}: its line {MARK!r} cannot be read ({error}); name another version"
        ) from error


def _runs(root: Path, base: str) -> list[str]:
    """List the snapshots of runs, newest first, without `base`."""
    order = ("--sort=-committerdate", f"--count={CANDIDATES}", "--format=%(objectname)")
    return [name for name in dict.fromkeys(git(root, "for-each-ref", *order, RUNS).split()) if name != base]


def _tree_with(root: Path, commit: str, paths: Sequence[str]) -> str:
    """Write the tree of a commit with some files as they are now in the work tree."""
    start = prefix(root)
    top = Path(git(root, "rev-parse", "--show-toplevel"))
    with tempfile.TemporaryDirectory(prefix="version-", dir=tmp_dir(root)) as folder:
        env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(top, "read-tree", commit, env=env)
        for path in paths:
            if (root / path).is_file():
                blob = git(root, "hash-object", "-w", "--stdin", feed=(root / path).read_bytes())
                git(top, "update-index", "--add", "--cacheinfo", f"100644,{blob},{start}{path}", env=env)
        return git(top, "write-tree", env=env)
