"""Rebuild a registered version from its commit and its raw data, and compare the hash of every output.

Everything happens in a work tree beside the project, with that tree's own code and a DVC cache that holds nothing but
raw data, so nothing that was computed before can answer for what is computed now.
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput, StageFailed
from tasks.environments import PINS, differing, pins_that_differ, stage_environment
from tasks.failures import StageError
from tasks.git import read_blobs
from tasks.lock_file import read_lock
from tasks.reproduce_target import Target, find_target
from tasks.reproduce_tree import RebuildTree, default_folder, prepare, remove
from tasks.settings import tmp_dir
from tasks.stage import run_stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One output, as recorded and as rebuilt."""

    stage: str
    output: str
    recorded: str
    rebuilt: str | None

    @property
    def equal(self) -> bool:
        """Whether the bytes are the same."""
        return self.recorded == self.rebuilt


@dataclass(kw_only=True, slots=True)
class Rebuilt:
    """What a rebuild found; filled in as it goes."""

    reference: str
    commit: str
    notes: list[str]
    folder: Path
    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each stage took; 0 for one that an interrupted call had finished."""
    environment: dict[str, dict[str, tuple[Any, Any]]] = field(default_factory=dict)
    """By stage, what differs in what it was computed on: name -> (recorded, here)."""
    unknown: list[str] = field(default_factory=list)
    """Stages of which nobody knows what they were computed on."""
    pins: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Packages that the version pins otherwise than they are installed: name -> (pinned, installed)."""
    left_out: list[str] = field(default_factory=list)
    """Stages that were not computed, because one before them came out otherwise."""
    kept: bool = True
    """Whether the work tree is still there."""

    @property
    def first_difference(self) -> str | None:
        """The first stage, in order, with an output that is not the recorded one."""
        return next((row.stage for row in self.rows if not row.equal), None)

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        rows = [{**asdict(row), "equal": row.equal} for row in self.rows]
        named = {name: getattr(self, name) for name in ("reference", "commit", "notes")}
        rest = ("seconds", "environment", "unknown", "pins", "left_out", "kept")
        return {
            **named, "equal": self.first_difference is None, "first_difference": self.first_difference, "outputs": rows,
            "folder": str(self.folder), **{name: getattr(self, name) for name in rest},
        }  # fmt: skip


def reproduce(
    root: Path,
    reference: str,
    *,
    start: str | None = None,
    keep: bool = False,
    folder: Path | None = None,
    on_line: Callable[[str], None],
) -> Rebuilt:
    """Rebuild a version; an interrupted call is taken up where it was.

    Args:
        root: the project's root.
        reference: see `tasks.reproduce_target.find_target`.
        start: first stage to compute; what comes before it is taken from the cache or the remote.
        keep: leave the work tree in any case; by default only one with a difference stays.
        folder: where to make the work tree, by default below .ratchet/tmp/reproduce.
        on_line: told what is going on, also from another thread.

    Raises:
        BadInput: no such version or stage, or raw data that are nowhere to be found.
        StageFailed: a stage did not finish; the work tree stays, and the next call goes on there.
    """
    target = find_target(root, reference)
    place = (folder or default_folder(root, target)).expanduser().resolve()
    found = Rebuilt(reference=target.reference, commit=target.commit, notes=list(target.notes), folder=place)
    pins = read_blobs(root, target.commit, [PINS]).get(PINS, b"").decode("utf-8", "replace")
    found.pins = pins_that_differ(pins)
    for note in found.notes:
        on_line(f"note: {note}")
    for name, (pinned, installed) in found.pins.items():
        on_line(f"note: {name} is pinned to {pinned}, installed is {installed or 'none'}")
    with _alone(root, place):
        tree = prepare(root, target, place, start=start, on_line=on_line)
        stages = ", ".join(tree.computed)
        on_line(f"{target.reference}: {'going on with' if tree.resumed else 'computing'} {stages} in {place}")
        _compute(target, tree, found, on_line)
        if not keep and found.first_difference is None:
            remove(root, place)
            found.kept = False
    return found


def _compute(target: Target, tree: RebuildTree, found: Rebuilt, on_line: Callable[[str], None]) -> None:
    for number, name in enumerate(tree.computed):
        on_line(f"{name}: begins ({number + 1} of {len(tree.computed)})")
        try:
            result = run_stage(name, root=tree.project, on_line=on_line, extra_env=tree.env)
        except StageError as error:
            failure = error.failure
            raised = BadInput if failure.kind == "bad_input" else StageFailed
            raise raised(
                f"{target.reference}: stage {name} {failure.sentence}; what is finished stays in {tree.folder}, and "
                "the same command goes on there"
            ) from error
        found.seconds[name] = result.seconds if result.status == "run" else 0.0
        rows = _compare(target, tree.project, name)
        found.rows += rows
        _note_environment(target, tree.project, name, found)
        wrong = [row.output for row in rows if not row.equal]
        verdict = f"{len(wrong)} of {len(rows)} outputs differ" if wrong else "equal"
        on_line(f"{name}: {verdict} ({result.seconds:.1f} s)")
        later = tree.computed[number + 1 :]
        if any(dep == path for other in later for dep in tree.graph.stages[other].deps for path in wrong):
            found.left_out = list(later)
            return


def _compare(target: Target, project: Path, stage: str) -> list[Row]:
    """Put the hashes that the rebuilt stage's lock entry has beside the recorded ones."""
    recorded = target.lock[stage].outs
    made = read_lock(project)[stage].outs
    return [
        Row(stage=stage, output=path, recorded=recorded.get(path, "absent"), rebuilt=made.get(path))
        for path in [*recorded, *(path for path in made if path not in recorded)]
    ]


def _note_environment(target: Target, project: Path, stage: str, found: Rebuilt) -> None:
    recorded, here = target.environments.get(stage), stage_environment(project, read_lock(project)[stage])
    if recorded is None or here is None:
        found.unknown.append(stage)
    elif differences := differing(recorded, here):
        found.environment[stage] = differences


@contextmanager
def _alone(root: Path, folder: Path) -> Iterator[None]:
    """Hold the folder for this process.

    Raises:
        BadInput: another one works there.
    """
    locks = tmp_dir(root) / "reproduce"
    locks.mkdir(exist_ok=True)
    with (locks / f"{folder.name}.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadInput(f"{folder}: another `ratchet reproduce` works there; wait, or name a --folder") from error
        yield


def same_everywhere(environment: Mapping[str, Mapping[str, tuple[Any, Any]]]) -> dict[tuple[str, Any, Any], list[str]]:
    """Gather the differences of several stages: (name, recorded, here) -> stages."""
    gathered: dict[tuple[str, Any, Any], list[str]] = {}
    for stage, differences in environment.items():
        for name, (recorded, here) in differences.items():
            old, new = ("-" if side is None else str(side) for side in (recorded, here))
            gathered.setdefault((name, old, new), []).append(stage)
    return gathered
