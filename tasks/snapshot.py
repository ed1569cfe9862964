"""A commit of the tree as it stands, made beside the user's branch, index and files.

Every run and every registered version names such a commit, so that what it was made from can be had again even when
nobody had committed it.
"""

import re
import tempfile
from pathlib import Path

from rlhf.errors import BadInput
from tasks.git import commit_of, git, inside_git
from tasks.settings import tmp_dir

RUNS = "refs/ratchet/runs"
TAGS = "refs/tags/ratchet"


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
    if not inside_git(root):
        return None
    # A copy of the user's index to begin with: git then hashes only what changed since.
    index = Path(git(root, "rev-parse", "--git-path", "index"))
    index = index if index.is_absolute() else root / index
    with tempfile.TemporaryDirectory(prefix="snapshot-", dir=tmp_dir(root)) as folder:
        own = Path(folder) / "index"
        if index.is_file():
            own.write_bytes(index.read_bytes())
        env = {"GIT_INDEX_FILE": str(own)}
        top = Path(git(root, "rev-parse", "--show-toplevel"))
        git(top, "add", "--all", env=env)
        tree = git(top, "write-tree", env=env)
    head = commit_of(root, "HEAD")
    if head is not None and git(root, "rev-parse", f"{head}^{{tree}}") == tree:
        commit = head
    else:
        parents = ["-p", head] if head else []
        commit = git(root, "commit-tree", tree, *parents, "-m", f"ratchet run {run_id}")
    git(root, "update-ref", f"{RUNS}/{run_id}", commit)
    return commit


def tag_version(root: Path, name: str, version: int | str, commit: str) -> str | None:
    """Set refs/tags/ratchet/NAME/vVERSION on a commit.

    Returns:
        The ref; None outside a git repository.

    Raises:
        BadInput: the tag names another commit already (a version never changes its origin), or git refuses.
    """
    if not inside_git(root):
        return None
    ref = f"{TAGS}/{name}/v{version}"
    known = git(root, "for-each-ref", "--format=%(objectname)", ref)
    if known and known != commit:
        raise BadInput(f"{ref} names commit {known[:12]} already, got {commit[:12]}; versions are never re-tagged")
    git(root, "update-ref", ref, commit)
    return ref
