"""Bring the tags of versions, and the runs behind them, to the git remote; nobody's branch is ever pushed.

Only where a DVC remote is configured as well: a tag is of use to others when they can have the data it speaks of. Which
refs a remote has is remembered in `.ratchet/state/pushed_refs.json`, so that nothing is asked when nothing is new.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.errors import BadInput
from rlhf.outputs import atomic_writer
from tasks.dvc_store import dvc_places
from tasks.git import git, remote_of, run_git, without_password
from tasks.settings import state_dir
from tasks.snapshot import RUNS, TAGS

FILE = "pushed_refs.json"
SHARED_NAME = f"{RUNS}/publish"
"""The snapshot of `ratchet publish`, which every copy of the project has under one name."""

PUSH_SECONDS = 300.0
"""How long a remote may take; the objects are small, since data are DVC's."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pushed:
    """What became of the refs."""

    done: list[str] = field(default_factory=list)
    failure: str | None = None
    """Why some are not there yet, as a sentence; None when all are, or when there is nowhere to push to."""


def push_refs(root: Path) -> Pushed:
    """Push the tags of versions and the snapshots of their runs that the git remote has not got yet.

    Args:
        root: the project's root.

    Returns:
        What was pushed; a failure is told and not raised, since what was published stays published.
    """
    remote = remote_of(root)
    if remote is None or dvc_places(root).remote is None:
        return Pushed()
    try:
        return _push(root, remote)
    except (BadInput, OSError) as error:
        return _failed(remote, str(error), [])


def _push(root: Path, remote: str) -> Pushed:
    address = without_password(git(root, "remote", "get-url", "--push", remote))
    path = state_dir(root) / FILE
    known = _read(path)
    there = known.get(address, {})
    wanted = {ref: commit for ref, commit in _refs(root).items() if there.get(ref) != commit}
    if not wanted:
        return Pushed()
    # A tag never moves: the remote refuses one that it has on another commit, and takes the others.
    specs = [f"{ref}:{ref}" for ref in wanted]
    ended = run_git(root, "push", "--porcelain", "--no-verify", remote, *specs, seconds=PUSH_SECONDS)
    rows = [line.split("\t") for line in ended.stdout.decode("utf-8", "replace").splitlines() if "\t" in line]
    accepted = {row[1].partition(":")[2] for row in rows if row[0] != "!"}
    refused = [f"{row[1].partition(':')[2]} {row[2]}" for row in rows if row[0] == "!"]
    done = [ref for ref in wanted if ref in accepted]
    if done:
        known[address] = {**there, **{ref: wanted[ref] for ref in done}}
        with atomic_writer(path) as stream:
            json.dump(known, stream, indent=1, sort_keys=True)
    if len(done) == len(wanted):
        return Pushed(done=done)
    said = ended.stderr.decode("utf-8", "replace")
    return _failed(remote, refused[0] if refused else said or "it gave no reason", done)


def _refs(root: Path) -> dict[str, str]:
    """Return the tags of versions and the snapshots that they stand on, as ref -> commit."""
    listed = git(root, "for-each-ref", "--format=%(refname) %(objectname) %(parent)", TAGS).splitlines()
    rows = [line.split() for line in listed]
    roots = {commit for row in rows for commit in row[1:]}
    runs = [line.split() for line in git(root, "for-each-ref", "--format=%(refname) %(objectname)", RUNS).splitlines()]
    tags = {row[0]: row[1] for row in rows}
    return tags | {ref: commit for ref, commit in runs if commit in roots and ref != SHARED_NAME}


def _failed(remote: str, reason: str, done: list[str]) -> Pushed:
    sentence = (
        f"the git remote {remote} did not take the tags of the versions: {without_password(' '.join(reason.split()))}; "
        "what was published stays published, and `ratchet publish` tries again"
    )
    log.warning("%s", sentence)
    return Pushed(done=done, failure=sentence)


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
