"""Git as plumbing: commands that touch neither branch, index nor files, in our own name and without hooks."""

import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from rlhf.errors import BadInput

IDENTITY = {"NAME": "Ratchet", "EMAIL": "ratchet@localhost"}
HOOK_VARIABLES = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_PREFIX")


def git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None, feed: bytes | None = None) -> str:
    """Run git and return what it wrote, without the end of line.

    Args:
        folder: where.
        arguments: subcommand and its arguments.
        env: variables on top of the present ones.
        feed: standard input.

    Raises:
        BadInput: it refused (no permission, a damaged repository, no such object), or is not installed.
    """
    return git_bytes(folder, *arguments, env=env, feed=feed).decode("utf-8", "replace").strip()


def git_bytes(folder: Path, *arguments: str, env: Mapping[str, str] | None = None, feed: bytes | None = None) -> bytes:
    """As `git`, with the output as it is."""
    done = run_git(folder, *arguments, env=env, feed=feed)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())
        raise BadInput(f"git {arguments[0]} in {folder}: {without_password(said) or 'failed'}")
    return done.stdout


def run_git(
    folder: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    feed: bytes | None = None,
    seconds: float | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """Run git to its end, whatever that is.

    Args:
        folder: where.
        arguments: subcommand and its arguments.
        env: variables on top of the present ones.
        feed: standard input.
        seconds: after which it is given up.

    Raises:
        BadInput: git is not installed, or took too long.
    """
    own = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()}
    # Nobody is there to answer a question for a password; and the variables of a hook, should we run in one, speak of
    # another index.
    outer = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES}
    quiet = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": outer.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oConnectTimeout=15"),
    }
    try:
        return subprocess.run(
            ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.quotePath=false", *arguments],
            cwd=folder,
            env={**outer, **quiet, "LC_ALL": "C", **own, **(env or {})},
            input=feed if feed is not None else b"",
            capture_output=True,
            check=False,
            timeout=seconds,
        )
    except FileNotFoundError as error:
        raise BadInput("git is not installed; install it and try again") from error
    except subprocess.TimeoutExpired as error:
        raise BadInput(f"git {arguments[0]} in {folder}: took more than {seconds:.0f} s; try again later") from error


def inside_git(root: Path) -> bool:
    """Tell whether a folder lies in a git work tree."""
    try:
        return git(root, "rev-parse", "--is-inside-work-tree") == "true"
    except BadInput:
        return False


def commit_of(root: Path, name: str) -> str | None:
    """Return the commit that a name means, None when it means none that is here."""
    try:
        return git(root, "rev-parse", "--quiet", "--verify", "--end-of-options", f"{name}^{{commit}}") or None
    except BadInput:
        return None


def prefix(root: Path) -> str:
    """Return the path of the project inside its repository, "" or ending in a slash."""
    return git(root, "rev-parse", "--show-prefix")


def files_of(root: Path, commit: str) -> set[str]:
    """List the files of the project in a commit, as paths from the project's root."""
    listed = git(root, "ls-tree", "-r", "-z", "--name-only", "--full-tree", commit)
    start = prefix(root)
    return {name.removeprefix(start) for name in listed.split("\0") if name.startswith(start) and name}


def read_blobs(root: Path, commit: str, paths: Iterable[str]) -> dict[str, bytes]:
    """Read files of a commit in one process; those that it has not got are left out."""
    wanted, start = list(paths), prefix(root)
    if not wanted:
        return {}
    asked = "".join(f"{commit}:{start}{path}\n" for path in wanted)
    answer, found, place = git_bytes(root, "cat-file", "--batch", feed=asked.encode()), {}, 0
    for path in wanted:
        end = answer.index(b"\n", place)
        words = answer[place:end].split()
        place = end + 1
        if words[-1:] == [b"missing"]:
            continue
        size = int(words[-1])
        if words[-2] == b"blob":
            found[path] = answer[place : place + size]
        place += size + 1
    return found


def remote_of(root: Path) -> str | None:
    """Return the git remote of this copy: the one that the branch follows, else `origin`; None with neither."""
    if not inside_git(root):
        return None
    known = git(root, "remote").split()
    try:
        branch = git(root, "symbolic-ref", "--quiet", "--short", "HEAD")
        upstream = git(root, "config", "--get", f"branch.{branch}.remote")
    except BadInput:  # no branch, or none that follows another
        upstream = ""
    return upstream if upstream in known else "origin" if "origin" in known else None


def without_password(text: str) -> str:
    """Return a text without the passwords of the addresses in it."""
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1@", text)
