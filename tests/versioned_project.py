"""The small registry project with commits and tags of versions, made without MLflow, for tests of rebuilding."""

import subprocess
from pathlib import Path

from tasks.environments import environments
from tasks.git import git
from tasks.lock_file import lineage, read_lock
from tasks.snapshot import snapshot, tag_version
from tasks.version_commit import commit_version
from tests.registry_project import fresh_copy
from tests.tiny_project import dvc

STAGES = {"sft": ("policy", 1), "ppo": ("policy", 2), "judge": ("judge", 1)}


def versioned_copy(base: Path, target: Path) -> Path:
    """Return a copy of the registry project, committed by its user, with policy/1, policy/2 and judge/1 tagged."""
    root = fresh_copy(base, target)
    # Raw data of a user: what the pipeline reads and no stage makes.
    dvc(root, "add", "-q", "data/validated/demonstrations", "data/validated/judge_pairs")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "the user's")
    tag_all(root)
    return root


def tag_all(root: Path) -> None:
    """Give every output of the lock file a commit and its tag."""
    lock, base = read_lock(root), snapshot(root, "run-1")
    for stage, (name, number) in STAGES.items():
        md5 = lock[stage].outs[f"data/models/{stage}"]
        commit = commit_version(root, base, stage, md5, lock, environments(root, lineage(lock, stage)))
        assert commit is not None
        tag_version(root, name, number, commit)


def retag(root: Path, name: str, like: str, changes: dict[str, str]) -> str:
    """Tag another version: the commit of an existing one with some files changed; returns the commit."""
    commit = git(root, "rev-parse", f"refs/tags/ratchet/{like}")
    index = root / ".ratchet" / "tmp" / "retag-index"
    env = {"GIT_INDEX_FILE": str(index)}
    git(root, "read-tree", commit, env=env)
    for path, text in changes.items():
        blob = git(root, "hash-object", "-w", "--stdin", feed=text.encode())
        git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", env=env)
    tree = git(root, "write-tree", env=env)
    index.unlink()
    message = git(root, "log", "-1", "--format=%B", commit)
    other = git(root, "commit-tree", tree, "-p", f"{commit}^", "-F", "-", feed=message.encode())
    git(root, "update-ref", f"refs/tags/ratchet/{name}", other)
    return other


def state_of(root: Path) -> tuple[str, ...]:
    """Return all that a user sees of a repository: branch, index, work tree, work trees."""
    asked = (
        ("symbolic-ref", "HEAD"),
        ("rev-parse", "HEAD"),
        ("status", "--porcelain"),
        ("diff", "--cached"),
        ("ls-files", "--stage"),
        ("worktree", "list"),
        ("branch", "--list"),
    )
    return tuple(
        subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout for words in asked
    )
