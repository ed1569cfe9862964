"""A dvc.lock that was cut off: DVC writes it in place, so a kill, a full disk or a power cut can leave half of it.

Nothing is lost by it: DVC's run-cache knows every finished stage by its inputs, and puts the outputs back.
"""

import contextlib
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path

from rlhf.errors import BadInput
from rlhf.outputs import atomic_writer
from tasks.graph import Graph, PlannedStage, plan_with_graph
from tasks.lock_file import LOCK_FILE
from tasks.settings import state_dir, tmp_dir

MERGE_MARKS = ("<<<<<<<", "=======", ">>>>>>>")


def keep_copy(root: Path) -> None:
    """Keep dvc.lock as it is now, after a stage has finished, for `mend_torn_lock`."""
    with atomic_writer(state_dir(root) / LOCK_FILE) as stream:
        stream.write((root / LOCK_FILE).read_text(encoding="utf-8"))


def plan_mended(
    root: Path, *, until: str | None, force: Collection[str], say: Callable[[str], None]
) -> tuple[Graph, list[PlannedStage]]:
    """Plan as `tasks.graph.plan_with_graph` does, and where a torn dvc.lock is in the way put it right first.

    Args:
        root: the project's root.
        until: only this stage and what it needs.
        force: stages to be executed whatever their state.
        say: told what was put right.

    Raises:
        BadInput: something else is in the way.
    """
    try:
        return plan_with_graph(root, until=until, force=force)
    except (BadInput, NotImplementedError):  # the latter where DVC meets half a word in the place of "md5"
        told = mend_torn_lock(root)
        if told is None:
            raise
        say(told)
        return plan_with_graph(root, until=until, force=force)


def mend_torn_lock(root: Path) -> str | None:
    """Replace a dvc.lock that DVC cannot read by the last whole one: our copy, the committed one, or none.

    A file with the marks of a merge is left to the person who merges. What was torn is kept in .ratchet/tmp.

    Args:
        root: the project's root.

    Returns:
        What was done, None when dvc.lock is whole, absent, or not ours to mend.
    """
    path = root / LOCK_FILE
    if not path.is_file():
        return None
    torn = path.read_bytes()
    lines = torn.decode("utf-8", errors="replace").splitlines()
    if _is_whole(torn) or any(line.startswith(MERGE_MARKS) for line in lines):
        return None
    with contextlib.suppress(OSError):  # a courtesy, for which a full disk has no room
        (tmp_dir(root) / f"{LOCK_FILE}.torn").write_bytes(torn)
    copy = state_dir(root) / LOCK_FILE
    last, committed = copy.read_bytes() if copy.is_file() else b"", _committed(root)
    found, what = b"", "removed"
    if last and _is_whole(last):
        found, what = last, "replaced by the copy from the last stage that finished"
    elif committed and _is_whole(committed):
        found, what = committed, "replaced by the committed one"
    if found:
        with atomic_writer(path) as stream:
            stream.write(found.decode("utf-8"))
    else:
        path.unlink()
    return f"{LOCK_FILE} was cut off: {what}; finished stages come out of DVC's run-cache"


def _is_whole(content: bytes) -> bool:
    """Whether DVC would take it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
    from voluptuous import MultipleInvalid

    try:
        document = COMPILED_LOCKFILE_SCHEMA(parse_yaml(content.decode("utf-8"), LOCK_FILE))
    except (YAMLFileCorruptedError, MultipleInvalid, UnicodeDecodeError):
        return False
    stages = (document.get("stages") or {}).values()
    entries = [entry for stage in stages for kind in ("deps", "outs") for entry in stage.get(kind) or ()]
    return all(entry.get("hash", "md5") == "md5" for entry in entries)


def _committed(root: Path) -> bytes:
    command = ["git", "show", f"HEAD:./{LOCK_FILE}"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=False)
    except FileNotFoundError:  # git is not installed
        return b""
    return done.stdout if done.returncode == 0 else b""
