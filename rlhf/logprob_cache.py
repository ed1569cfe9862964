"""What the reference says about answers, kept between runs: the same model and data need not be asked twice.

A file is `.ratchet/tmp/logprobs/KEY.safetensors`. KEY is a hash of everything that the bits of the values depend on,
so that a value that is found is the value that would have been computed. As with checkpoints, nothing is kept and
nothing is found outside a stage of a project, which shows in the variable RATCHET_KEY.
"""

import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rlhf import distributed
from rlhf.checkpoint import KEY_VARIABLE
from rlhf.matmul import chosen
from rlhf.outputs import atomic_writer

FOLDER = Path(".ratchet/tmp/logprobs")
MOST_FILES = 24
MOST_BYTES = 2**30
"""Files beyond either bound go, those that were used longest ago first."""
SOURCES = (
    "batches", "device", "distributed", "fused_head", "kv_cache", "lm_head", "logprobs", "matmul", "models",
    "packed_attention", "packing", "pair_logprobs", "ranges", "shapes",
)  # fmt: skip
"""Modules of `rlhf` that the values go through; another version of one of them makes the kept values worthless."""

log = logging.getLogger(__name__)


class LogprobCache:
    """Log-probabilities under one frozen model, by the token ids that they belong to."""

    def __init__(self, model: Path, forbidden: Tensor, *, rows: int, precision: str) -> None:
        """Describe what all values have in common; reads the model's files, but only inside a project.

        Args:
            model: folder of the model.
            forbidden: True at tokens that are never sampled. [V] bool
            rows: of one forward pass: padding, and with it rounding, depends on it.
            precision: number format, see `device.autocast`.
        """
        self.common = None
        if os.environ.get(KEY_VARIABLE):
            settings = [forbidden.nonzero().flatten().tolist(), list(forbidden.shape), rows, precision, chosen()]
            self.common = _hash(folder_digest(model), _hash(json.dumps(settings)), _machine(), _sources())

    def get(
        self, ids: Iterable[Sequence[Sequence[int]]], shape: Sequence[int], compute: Callable[[], Tensor]
    ) -> Tensor:
        """The values of some token ids: found, or else computed and kept.

        Args:
            ids: prompts and responses of every value; read only inside a project.
            shape: of the values.
            compute: gives the values, on the CPU; a collective operation when there are several ranks.

        Returns:
            The values. [shape] float32
        """
        if self.common is None:
            return compute()
        digest = hashlib.sha256(json.dumps([self.common, list(shape)]).encode())
        for one in ids:
            digest.update(json.dumps(one).encode())
        key = digest.hexdigest()[:32]
        file = FOLDER / f"{key}.safetensors"
        values = _read(file, key, tuple(shape))
        # Computing is done together, so one rank that found nothing makes all compute.
        if not distributed.any_rank(values is None) and values is not None:
            return values
        values = compute()
        if distributed.is_main():
            _write(file, key, values)
        return values


def folder_digest(folder: Path) -> str:
    """Hash of the names and bytes of all files below a folder, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            digest.update(f"\0{file.relative_to(folder)}\0".encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def prune() -> None:
    """Remove the files that were used longest ago until both bounds hold; the newest one always stays."""
    # Every file: one that a killed process left half written counts too.
    files = sorted(FOLDER.iterdir(), key=lambda file: (-file.stat().st_mtime_ns, file.name))
    total = 0
    for count, file in enumerate(files, start=1):
        total += file.stat().st_size
        if count > 1 and (count > MOST_FILES or total > MOST_BYTES):
            file.unlink(missing_ok=True)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _machine() -> str:
    """Device, threads and versions: each may change the last bit of a sum."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
        name = next((line for line in lines if line.startswith("model name")), platform.processor())
        device = f"{name} {torch.backends.cpu.get_cpu_capability()}"
    return json.dumps(
        [device, torch.get_num_threads(), distributed.world_size(), torch.__version__, transformers.__version__]
    )


def _sources() -> str:
    here = Path(__file__).parent
    return _hash(*(hashlib.sha256((here / f"{name}.py").read_bytes()).hexdigest() for name in SOURCES))


def _read(file: Path, key: str, shape: tuple[int, ...]) -> Tensor | None:
    """The values of a file, or None when there is none or it cannot be trusted, which is said in the log."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stream:
            metadata: dict[str, str] = stream.metadata() or {}
            values: Tensor = stream.get_tensor("logprobs").clone()
        whole = values.dtype == torch.float32 and tuple(values.shape) == shape and metadata == _metadata(key, values)
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read (%s); computing the reference's log-probabilities again", file, error)
        return None
    if not whole:
        log.warning("%s is not what was written there; computing the reference's log-probabilities again", file)
        return None
    os.utime(file)
    log.info("the reference's log-probabilities are read from %s", file)
    return values


def _write(file: Path, key: str, values: Tensor) -> None:
    try:
        with atomic_writer(file, "wb") as stream:
            stream.write(save({"logprobs": values.contiguous()}, _metadata(key, values)))
        prune()
    except OSError as error:  # what is kept saves time only: the stage has the values and goes on
        log.warning("%s cannot be written (%s); the values are not kept", file, error.strerror)


def _metadata(key: str, values: Tensor) -> dict[str, str]:
    # One entry: several are written in a random order, and equal contents shall be equal files.
    return {"key and hash": f"{key} {hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()}"}
