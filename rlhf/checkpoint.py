"""Checkpoints that survive a kill at any instant, under a key that changes when anything that matters changes.

A stage's own outputs are deleted by DVC before a rerun, so checkpoints lie elsewhere: in
`.ratchet/tmp/checkpoints/STAGE/KEY`. KEY is a hash of the stage's block in `dvc.yaml`, its parameters and the bytes of
its dependencies; state of another key is never read. The launcher computes it once and hands it down as RATCHET_KEY;
without that variable (a recipe called from a test or a notebook) nothing is saved and nothing is found.
"""

import hashlib
import io
import json
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import BadInput

KEY_VARIABLE = "RATCHET_KEY"
FOLDER = Path(".ratchet/tmp/checkpoints")
GAP = re.compile(r"\$\{\s*([\w.]+)\s*\}")
KEPT = 2
"""Newest checkpoints kept per key: the one before the last is there in case the last is torn."""

log = logging.getLogger(__name__)


def stage_key(stage: str, arguments: Sequence[str], params: Mapping[str, Any], root: Path = Path()) -> str:
    """Hash of everything that a stage's result depends on: command, parameters, bytes of its dependencies.

    Args:
        stage: name of the stage in `dvc.yaml`.
        arguments: command line, used where `dvc.yaml` has no such stage.
        params: the whole parameter file; only what the stage's block names is hashed, or all of it without a block.
        root: folder that holds `dvc.yaml`.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    block = _dvc_block(stage, root)
    if block is None:
        digest.update(json.dumps([list(arguments), params], sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]
    names = [entry for entry in block.get("params", []) if isinstance(entry, str)]
    chosen = {name: _lookup(params, name) for name in names}
    digest.update(json.dumps([block, chosen], sort_keys=True, default=str).encode())
    for dependency in sorted(_filled(str(name), params) for name in block.get("deps", [])):
        for file in _files_below(root / dependency):
            digest.update(f"\0{file.relative_to(root)}\0".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def _dvc_block(stage: str, root: Path) -> dict[str, Any] | None:
    file = root / "dvc.yaml"
    if not file.is_file():
        return None
    stages = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("stages", {})
    block = stages.get(stage)
    return block if isinstance(block, dict) else None


def _filled(text: str, params: Mapping[str, Any]) -> str:
    """A path of `dvc.yaml` with its `${section.key}` replaced by parameters, as DVC does."""
    return GAP.sub(lambda gap: str(_lookup(params, gap.group(1))), text)


def _lookup(params: Mapping[str, Any], dotted: str) -> Any:
    value: Any = params
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _files_below(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


class Checkpoints:
    """The checkpoints of one stage under the current key.

    Every file is written beside its place, flushed to disk and renamed; its name carries the hash of its bytes, so a
    torn file is recognised and the one before it is used.
    """

    def __init__(self, stage: str, every_seconds: float = 30.0) -> None:
        """Find the folder of this stage and key; does not create it.

        Args:
            stage: name of the stage.
            every_seconds: `due()` turns true this long after the last save, seconds.
        """
        key, rank = os.environ.get(KEY_VARIABLE), os.environ.get("RANK", "0")
        # Each rank holds its own part of the optimizer's state, so each has files of its own.
        self.folder = FOLDER / stage / key / ("" if rank == "0" else f"rank-{rank}") if key else None
        self.every_seconds = every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether enough time has passed since the last save (or since the start)."""
        return self.folder is not None and time.monotonic() - self._last >= self.every_seconds

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Write `state` (nested dicts and lists of tensors, numbers and strings) as the checkpoint of `step`."""
        if self.folder is None:
            return
        import torch

        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getbuffer()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{step:09d}-{hashlib.sha256(data).hexdigest()[:32]}.pt"
        temporary = self.folder / f".{name}.tmp"
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(self.folder)
        for old in self._files()[KEPT:]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Read the newest intact checkpoint; a torn one is reported in the log and passed over.

        Returns:
            The saved state on the CPU, or None when there is nothing to resume from.
        """
        import torch

        for file in self._files():
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest()[:32] != file.stem.partition("-")[2]:
                log.warning("checkpoint %s is torn or was changed; using the one before it", file.name)
                continue
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            log.info("resuming from the checkpoint of step %d", int(file.stem.partition("-")[0]))
            return dict(state)
        return None

    def clear(self) -> None:
        """Remove the checkpoints of this key."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        """Whole checkpoint files, newest step first."""
        if self.folder is None or not self.folder.is_dir():
            return []
        return sorted(self.folder.glob("[0-9]*.pt"), reverse=True)


def prune(stage: str, key: str, keep: int = 2) -> None:
    """Remove all but the `keep` most recent keys of a stage, never `key` itself, so that disk use is bounded."""
    folder = FOLDER / stage
    if not folder.is_dir():
        return
    others = sorted((path for path in folder.iterdir() if path.name != key), key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) - (keep - 1))]:
        shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: the directory entry itself has to reach the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    """Restore what `rng_state` returned.

    Raises:
        BadInput: the state was saved with another number of GPUs.
    """
    import numpy as np
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    cuda = state["cuda"]
    if len(cuda) != (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise BadInput(f"the checkpoint holds the random state of {len(cuda)} GPUs; run on as many or remove it")
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
