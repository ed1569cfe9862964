"""Checkpoints that survive a kill at any instant, under a key that changes when anything that matters changes.

A stage's own outputs are deleted by DVC before a rerun, so checkpoints lie elsewhere: in
`.ratchet/tmp/checkpoints/STAGE/KEY`. The launcher computes the key once (`checkpoint_key`) and hands it down as
RATCHET_KEY; without that variable (a recipe called from a test or a notebook) nothing is saved and nothing is found.
State of another key is never read.
"""

import contextlib
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf import checkpoint_file
from rlhf.checkpoint_file import Origin
from rlhf.checkpoint_key import ROUNDING
from rlhf.errors import StageFailed

KEY_VARIABLE = "RATCHET_KEY"
SETTINGS_VARIABLE = "RATCHET_ROUNDING_SETTINGS"
FOLDER = Path(".ratchet/tmp/checkpoints")
EVERY_VARIABLE = "RATCHET_CHECKPOINT_SECONDS"
EVERY_SECONDS = 30.0
SHARE = 0.05
"""Most of the time that goes into saving; large states are saved less often."""
KEPT = 2
"""Newest checkpoints kept per key: the one before the last is there in case the last is torn."""

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage under the current key.

    A file that is torn, foreign or of an older version of this project is passed over (`checkpoint_file`), and the one
    before it is used. Each of W ranks holds its own part of the optimizer's state and has files of its own, below
    `ranks-W/`; a step counts only where all of them have it. On disk there are at most `KEPT` files for each key and
    rank, and one more while it is written.
    """

    def __init__(self, stage: str, every_seconds: float | None = None) -> None:
        """Find the folder of this stage and key; does not create it.

        Args:
            stage: name of the stage.
            every_seconds: `due()` turns true this long after the last save, seconds; None means the environment's
                RATCHET_CHECKPOINT_SECONDS, or 30.
        """
        self.stage, key = stage, os.environ.get(KEY_VARIABLE)
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.root = FOLDER / stage / key if key else None
        self.folder = self.root and _rank_folder(self.root, self.world, self.rank)
        self.settings = os.environ.get(SETTINGS_VARIABLE, "{}")
        told = os.environ.get(EVERY_VARIABLE, EVERY_SECONDS)
        self.every_seconds = float(told) if every_seconds is None else every_seconds
        self._last, self._pause = time.monotonic(), self.every_seconds
        self._passed_over = set[Path]()

    def due(self) -> bool:
        """Whether enough time has passed since the last save (or since the start)."""
        return self.folder is not None and time.monotonic() - self._last >= self._pause

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write `state` (nested dicts and lists of tensors, numbers and strings) as the checkpoint of `step`.

        Raises:
            StageFailed: it cannot be written; the checkpoints before it are kept.
        """
        if self.root is None or self.folder is None:
            return
        started = time.monotonic()
        try:
            origin = self._origin(self.world, self.rank)
            written = checkpoint_file.write(self.folder, origin, step, state, self.settings)
        except OSError as error:
            raise StageFailed(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({error.strerror}); the one before it "
                "is kept, so free space (`ratchet clean` lists what can go) and run again to go on from there"
            ) from error
        self._passed_over.discard(written)
        found = checkpoint_file.files(self.folder)
        earlier = [file for file in found if checkpoint_file.step_of(file) < step and file not in self._passed_over]
        for old in set(found) - {written, *earlier[: KEPT - 1]}:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()
        if self.every_seconds:
            self._pause = max(self.every_seconds, (self._last - started) / SHARE)

    def load(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that every rank has intact; what cannot be used is named in the log.

        A checkpoint of another number of ranks is put together and cut anew: the same numbers, in other hands.

        Returns:
            The saved state on the CPU, or None when there is nothing to resume from.
        """
        if self.root is None:
            return None
        found = self._agreed()
        if found is None:
            return None
        step, world = found
        # What this rank alone has of a later step must not push out, at the next save, what all of them have.
        later = checkpoint_file.files(_rank_folder(self.root, self.world, self.rank))
        self._passed_over.update(file for file in later if checkpoint_file.step_of(file) > step)
        ranks = [self.rank] if world == self.world else range(world)
        saved = [checkpoint_file.read(self._file(world, rank, step)) for rank in ranks]
        states, settings = [state for state, _ in saved], saved[0][1]
        if world == self.world:
            log.info("resuming from the checkpoint of step %d", step)
        else:
            log.info("resuming from the checkpoint of step %d, which %d rank(s) wrote, on %d", step, world, self.world)
            log.info("answers that are sampled from here on will be others, since random numbers belong to ranks")
        _tell_changes(settings, self.settings)
        return merge_ranks(states, self.world) if world != self.world else states[0]

    def found(self, path: Path | None) -> Path | None:
        """Something else that was kept in `folder`, wherever it lies if another number of ranks has left it.

        Args:
            path: in `folder`, as it was when this many ranks left it; None where nothing is kept.
        """
        if path is None or self.root is None or path.exists():
            return path
        return next(iter(sorted(self.root.rglob(path.name))), path)

    def clear(self) -> None:
        """Remove the checkpoints of this key, once every rank is done; on each machine its own."""
        if self.root is None:
            return
        if self.world > 1:
            from rlhf import distributed

            distributed.barrier()
        # At once: half a folder could hold a checkpoint that speaks of a finished model which has gone already.
        gone = self.root.with_name(f".{self.root.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # there was none, or another rank was quicker
            self.root.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _origin(self, world: int, rank: int) -> Origin:
        assert self.root is not None
        return Origin(stage=self.stage, key=self.root.name, world=world, rank=rank)

    def _file(self, world: int, rank: int, step: int) -> Path:
        assert self.root is not None
        found = set(checkpoint_file.files(_rank_folder(self.root, world, rank))) - self._passed_over
        return next(file for file in found if checkpoint_file.step_of(file) == step)

    def _steps(self, world: int, rank: int, *, verify: bool) -> set[int]:
        """Steps of the checkpoints of a rank; with `verify` those that can be used."""
        assert self.root is not None
        steps, origin = set(), self._origin(world, rank)
        for file in checkpoint_file.files(_rank_folder(self.root, world, rank)):
            if not verify or checkpoint_file.usable(file, origin):
                steps.add(checkpoint_file.step_of(file))
            else:
                self._passed_over.add(file)
        return steps

    def _agreed(self) -> tuple[int, int] | None:
        """Newest step that all ranks can read, and the number of ranks that wrote it."""
        assert self.root is not None
        mine = {(step, self.world) for step in self._steps(self.world, self.rank, verify=True)}
        for world in _worlds(self.root) - {self.world}:
            # One rank looks at the bytes, which are the same for all; the others see whether the files are there.
            sets = [self._steps(world, rank, verify=self.rank == 0) for rank in range(world)]
            mine |= {(step, world) for step in set.intersection(*sets)}
        common = mine
        if self.world > 1:
            from rlhf import distributed

            common = set.intersection(*map(set, distributed.gather_objects(sorted(mine))))
        return max(common, key=lambda found: (found[0], found[1] == self.world), default=None)


def merge_ranks(states: Sequence[Mapping[str, Any]], world: int) -> dict[str, Any]:
    """The states of all ranks as the state of each of another number of ranks.

    Engines' pieces are put together; partial sums (a mapping of numbers under `recent`) are added and shared out, so
    that their sum over ranks stays; all else is the same on every rank, and is taken from the first.

    Args:
        states: what the ranks saved, by rank.
        world: number of ranks now.
    """
    from rlhf.engine_state import merge

    merged = dict(states[0])
    for name, value in states[0].items():
        if isinstance(value, Mapping) and "pieces" in value:
            merged[name] = merge([state[name] for state in states])
        elif name == "recent" and isinstance(value, Mapping):
            merged[name] = {key: sum(state[name].get(key, 0.0) for state in states) / world for key in value}
    return merged


def _tell_changes(then: str, now: str) -> None:
    """Say which settings differ from those under which a checkpoint was written."""
    old, new = json.loads(then), json.loads(now)
    changed = [name for name in ROUNDING if old.get(name) != new.get(name)]
    if changed:
        told = ", ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in changed)
        log.info("%s: the result will equal that of an uninterrupted run to rounding only", told)


def _rank_folder(root: Path, world: int, rank: int) -> Path:
    return root if world == 1 else root / f"ranks-{world}" / str(rank)


def _worlds(root: Path) -> set[int]:
    """Numbers of ranks that have left checkpoints."""
    named = (folder.name.partition("-")[2] for folder in root.glob("ranks-[1-9]*"))
    return {1, *(int(number) for number in named if number.isdecimal())}


def disk_use(folder: Path = FOLDER) -> dict[str, int]:
    """Bytes that the checkpoints of each stage take, by stage.

    Args:
        folder: of all checkpoints: `PROJECT/.ratchet/tmp/checkpoints`.
    """
    stages = sorted(stage for stage in folder.glob("*") if stage.is_dir())
    return {stage.name: sum(file.lstat().st_size for file in stage.rglob("*") if file.is_file()) for stage in stages}


def prune(stage: str, key: str, keep: int = 2) -> None:
    """Remove all but the `keep` most recent keys of a stage, never `key` itself, so that disk use is bounded."""
    folder = FOLDER / stage
    if not folder.is_dir():
        return
    for left in folder.glob(".*"):  # what a process that was killed had begun to remove
        shutil.rmtree(left, ignore_errors=True)
    others = sorted((path for path in folder.iterdir() if path.name != key), key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) - (keep - 1))]:
        shutil.rmtree(path, ignore_errors=True)


def rng_state() -> dict[str, Any]:
    """State of every global random generator (Python, NumPy, torch CPU and CUDA), in types that load without pickle."""
    import numpy as np
    import torch

    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what `rng_state` returned; generators of GPUs only where there are as many."""
    import numpy as np
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    cuda = state["cuda"]
    if not torch.cuda.is_available() or len(cuda) != torch.cuda.device_count():
        return  # all that is sampled has generators of its own; those of other GPUs could not be continued
    torch.cuda.set_rng_state_all(cuda)
