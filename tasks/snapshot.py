"""A commit of the tree as it stands, made beside the user's branch, index and files.

Every run and every registered version names such a commit, so that what it was made from can be had again even when
nobody had committed it.
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from rlhf.errors import BadInput
from tasks.settings import tmp_dir

RUNS = "refs/ratchet/runs"
TAGS = "refs/tags/ratchet"
IDENTITY = {"NAME": "Ratchet", "EMAIL": "ratchet@localhost"}


def snapshot(root: Path, run_id: str) -> str | None:
    """Commit all files, changed and new ones too, that git does not ignore.

    Args:
        root: the project's root.
        run_id: name of the ref, refs/ratchet/runs/RUN_ID.

    Returns:
        The commit's id; None outside a git repository. An unchanged tree gives HEAD itself.

    Raises:
        BadInput: git refuses (no permission, a damaged repository, a bad run id).
    """
    if not re.fullmatch(r"[\w.-]+", run_id):
        raise BadInput(f"run id {run_id!r}: wanted letters, digits, '-', '_' and '.' only")
    if not _inside_git(root):
        return None
    # A copy of the user's index to begin with: git then hashes only what changed since.
    index = Path(_git(root, "rev-parse", "--git-path", "index"))
    index = index if index.is_absolute() else root / index
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=tmp_dir(root)) as folder:
        own = Path(folder) / "index"
        if index.is_file():
            own.write_bytes(index.read_bytes())
        env = {"GIT_INDEX_FILE": str(own)}
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
        _git(top, "add", "--all", env=env)
        tree = _git(top, "write-tree", env=env)
    head = _head(root)
    if head is not None and _git(root, "rev-parse", f"{head}^{{tree}}") == tree:
        commit = head
    else:
        parents = ["-p", head] if head else []
        commit = _git(root, "commit-tree", tree, *parents, "-m", f"ratchet run {run_id}")
    _git(root, "update-ref", f"{RUNS}/{run_id}", commit)
    return commit


def tag_version(root: Path, name: str, version: int | str, commit: str) -> str | None:
    """Set refs/tags/ratchet/NAME/vVERSION on a commit.

    Returns:
        The ref; None outside a git repository.

    Raises:
        BadInput: the tag names another commit already (a version never changes its origin), or git refuses.
    """
    if not _inside_git(root):
        return None
    ref = f"{TAGS}/{name}/v{version}"
    known = _git(root, "for-each-ref", "--format=%(objectname)", ref)
    if known and known != commit:
        raise BadInput(f"{ref} names commit {known[:12]} already, got {commit[:12]}; versions are never re-tagged")
    _git(root, "update-ref", ref, commit)
    return ref


def _inside_git(root: Path) -> bool:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--is-inside-work-tree"], cwd=root, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # git is not installed
        return False
    return done.returncode == 0 and done.stdout.strip() == "true"


def _head(root: Path) -> str | None:
    done = subprocess.run(
        ["git", "rev-parse", "--quiet", "--verify", "HEAD^{commit}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def _git(folder: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
    own = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()}
    done = subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", *arguments],
        cwd=folder,
        env={**os.environ, **own, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BadInput(f"git {arguments[0]} in {folder}: {' '.join(done.stderr.split()) or 'failed'}")
    return done.stdout.strip()
