"""What a stage was computed on: processor, threads, libraries, devices; kept at its end, outside DVC's outputs.

Equal inputs give equal bits on equal machines only, so whoever rebuilds a version wants to see what differs. A record
lies in `.ratchet/tmp/environments/STAGE` and names the hashes of what the stage has written: its small files, and the
weights where they are small. That ties it to the output, also when DVC puts an earlier output back; metrics alone would
not do, since weights that differ in their last bits may well have the same. Nothing is imported for it: a library that
is not loaded has had no part in the result.
"""

import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlhf.outputs import atomic_writer

FOLDER = Path(".ratchet/tmp/environments")
WEIGHTS = "model.safetensors"
LARGEST = 1 << 24
"""Bytes of the largest file that is hashed; 16 MiB take about 0.03 s."""
KEPT = 20
"""Records of a stage that are kept, the newest."""
LIBRARIES = ("torch", "numpy", "transformers", "safetensors", "tokenizers", "pyarrow", "deepspeed", "peft")
SETTINGS = re.compile(
    r"(OMP|MKL|KMP|GOMP|OPENBLAS|ONEDNN|DNNL|ATEN|CUBLAS|CUDNN|NCCL|NVIDIA_TF32|TORCH|PYTORCH)_\w+|PYTHONHASHSEED|"
    r"CUDA_(LAUNCH_BLOCKING|MODULE_LOADING)"
)
"""Variables that choose kernels, threads or the order of sums."""
PLACES = re.compile(r"_(DIR|HOME|PATH|CACHE|FILE|HOST|ADDR\w*|SOCKET_IFNAME)$|TOKEN|SECRET|PASS|_KEY|^PYTORCH_NVML")
"""Variables among them that only name places, or that could hold what nobody is to read."""
INSTRUCTIONS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512", "avx_vnni", "amx", "asimd", "sve", "bf16", "i8mm")
"""Beginnings of the processor flags that libraries choose their kernels by."""


def write_record(stage: str, paths: Iterable[Path], *, key: str, root: Path = Path()) -> Path | None:
    """Keep the present environment as that of a stage that has just finished.

    Args:
        stage: its name.
        paths: what it has read and written, from the project's folder; only what it wrote will be compared.
        key: its resume key, "" when unknown.
        root: the project's folder.

    Returns:
        The file, None where nothing was written that the record could be tied to.
    """
    outputs = {name: digest for path in paths for name, digest in _hashes(root, path)}
    if not outputs:
        return None
    folder = root / FOLDER / stage
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_md5(json.dumps(outputs, sort_keys=True).encode())}.json"
    with atomic_writer(path) as stream:
        json.dump({"stage": stage, "key": key, "outputs": outputs, **collect()}, stream, indent=1, sort_keys=True)
    for old in sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def _hashes(root: Path, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the md5 of a file, or of the weights in a folder, as far as they are read in no time."""
    place = root / path
    for file in [place / WEIGHTS] if place.is_dir() else [place]:
        if file.is_file() and file.stat().st_size <= LARGEST:
            yield Path(os.path.relpath(file, root)).as_posix(), _md5(file.read_bytes())  # outside the project, too


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def collect() -> dict[str, Any]:
    """Describe this process: plain JSON values; what cannot be told is left out."""
    model, flags = _processor()
    found: dict[str, Any] = {
        "cpu": model,
        "instructions": flags,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "python": platform.python_version(),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "settings": {
            name: value
            for name, value in sorted(os.environ.items())
            if SETTINGS.fullmatch(name) and not PLACES.search(name)
        },
    }
    for name in LIBRARIES:
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    found["threads"] = int(os.environ.get("OMP_NUM_THREADS") or 0) or found["cores"]
    if "torch" in sys.modules:
        found |= _torch(sys.modules["torch"])
    if "rlhf.matmul" in sys.modules:
        found["matmul"] = sys.modules["rlhf.matmul"]._chosen
    return found


def _processor() -> tuple[str, list[str]]:
    """Name and instruction sets of the processor, as Linux tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            text = stream.read(1 << 14)  # the first processor says what the others repeat
    except OSError:
        return platform.processor() or platform.machine(), []
    lines = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", text.partition("\n\n")[0], re.MULTILINE))
    flags = str(lines.get("flags") or lines.get("Features") or "").split()
    return str(lines.get("model name") or platform.machine()), sorted({f for f in flags if f.startswith(INSTRUCTIONS)})


def _torch(torch: Any) -> dict[str, Any]:
    """What torch computes with."""
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if not torch.cuda.is_initialized():
        return found
    found |= {
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    driver = Path("/proc/driver/nvidia/version")
    if driver.is_file() and (match := re.search(r"Kernel Module.*?(\d+\.\d+[\d.]*)", driver.read_text())):
        found["driver"] = match.group(1)
    return found
