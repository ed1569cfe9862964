"""Checks of the machine: interpreter, packages, torch, processors, memory, disk, model cache."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf.errors import StageFailed
from tasks.diagnosis import Check

MIB, GIB = 2**20, 2**30
WRITTEN = (".ratchet/tmp", ".ratchet/state", ".dvc", "data")
"""Folders that a run writes to; each may be a disk of its own."""
DISK_LEAST = 32 * MIB
LOWEST_PYTHON = (3, 11)
DISK_FAIL, DISK_WARN = 1 * GIB, 5 * GIB
MEMORY_WARN = 2 * GIB  # a stage of the embedded task stays under 1.5 GB
MATMUL_SIZE = 256
MATMUL_TOLERANCE = 1e-3  # fp32 sums of 256 products of order 1


def python() -> Check:
    """The interpreter's version."""
    number = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LOWEST_PYTHON:
        return Check(
            name="python", state="fail", found=number, remedy="Make the virtual environment with Python 3.11 or newer."
        )
    return Check(name="python", state="ok", found=f"{number} in {sys.prefix}")


def packages(root: Path) -> Check:
    """Installed packages against constraints.txt; a direct dependency that is absent is a failure."""
    pins = read_pins(root / "constraints.txt")
    installed = {name: _installed(name) for name in pins}
    absent = [name for name in direct_dependencies(root / "pyproject.toml") if _installed(name) is None]
    if absent:
        return Check(
            name="packages",
            state="fail",
            found=f"not installed: {', '.join(absent)}",
            remedy="Run `pip install -c constraints.txt -e .` in the virtual environment.",
        )
    # A local label (2.13.0+cpu) names the build, not another version.
    other = [
        f"{name} {found} (pinned {pins[name]})"
        for name, found in installed.items()
        if found is not None and found != pins[name] and found.split("+")[0] != pins[name]
    ]
    if other:
        shown = ", ".join(other[:3]) + (f" and {len(other) - 3} more" if len(other) > 3 else "")
        return Check(
            name="packages",
            state="warn",
            found=shown,
            remedy="Results may differ from the recorded ones; `pip install -c constraints.txt -e .` brings the pins.",
        )
    count = sum(found is not None for found in installed.values())
    return Check(name="packages", state="ok", found=f"{count} installed as pinned in constraints.txt")


def read_pins(file: Path) -> dict[str, str]:
    """Read `name==version` lines; comments and markers are passed over."""
    if not file.is_file():
        return {}
    found = re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;#]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def direct_dependencies(file: Path) -> list[str]:
    """Read the names of the packages that the project itself asks for on this platform."""
    lines = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    here = [line for line in lines if "sys_platform" not in line or f"'{sys.platform}'" in line]
    return [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in here]


def torch_build() -> Check:
    """The build of torch and the GPU that it can use."""
    import torch

    build = f"torch {torch.__version__}"
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{device.name} with {device.total_memory / GIB:.0f} GiB" for device in devices)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        return Check(name="torch", state="ok", found=f"{build}, {len(devices)} GPU(s): {names}; {half}")
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists():
        return Check(
            name="torch",
            state="warn",
            found=f"{build} does not use the NVIDIA GPU of this machine",
            remedy="Install the CUDA build of torch (pytorch.org names the index for a driver), or train on the CPU.",
        )
    return Check(name="torch", state="ok", found=f"{build}, no GPU: trains on the CPU")


def matmul() -> Check:
    """One fp32 product against NumPy in fp64, with its speed and the instruction set in use."""
    import numpy
    import torch

    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    torch.mm(a, b)  # the first call sets up threads and buffers
    repeats = 20
    started = time.perf_counter()
    for _ in range(repeats):
        product = torch.mm(a, b)
    seconds = (time.perf_counter() - started) / repeats
    error = float(numpy.abs(a.double().numpy() @ b.double().numpy() - product.numpy()).max())
    speed = 2 * MATMUL_SIZE**3 / seconds / 1e9
    capability = torch.backends.cpu.get_cpu_capability()
    found = f"{capability}, {speed:.0f} GFLOP/s with {torch.get_num_threads()} thread(s), largest error {error:.0e}"
    if not error < MATMUL_TOLERANCE:
        return Check(
            name="matmul",
            state="fail",
            found=found,
            remedy="fp32 products are wrong on this machine; reinstall torch and numpy from constraints.txt.",
        )
    return Check(name="matmul", state="ok", found=found)


def processors(threads: dict[str, int]) -> Check:
    """Cores that this process may use, against the threads that params.yaml gives each stage.

    Args:
        threads: stage name to its number of threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    greedy = [f"{stage} ({count})" for stage, count in threads.items() if count > cores]
    if greedy:
        return Check(
            name="processors",
            state="warn",
            found=f"{cores} core(s), fewer than the threads of {', '.join(greedy)}",
            remedy="It works, but slowly; lower these stages' `threads` (the thread count is part of the result).",
        )
    return Check(name="processors", state="ok", found=f"{cores} core(s), enough for every stage's threads")


def memory() -> Check:
    """Memory that is free for a stage."""
    import psutil

    state = psutil.virtual_memory()
    found = f"{state.available / GIB:.1f} of {state.total / GIB:.1f} GiB free"
    if state.available < MEMORY_WARN:
        return Check(
            name="memory", state="warn", found=found, remedy="A stage may be killed; end other programs before a run."
        )
    return Check(name="memory", state="ok", found=found)


def disk(root: Path) -> Check:
    """Space left where the project lies."""
    free = shutil.disk_usage(root).free
    found = f"{free / GIB:.1f} GiB free"
    if free < DISK_WARN:
        return Check(
            name="disk",
            state="fail" if free < DISK_FAIL else "warn",
            found=found,
            remedy="Free space: `ratchet clean`, then `dvc gc --workspace` for data that nothing refers to.",
        )
    return Check(name="disk", state="ok", found=found)


def require_space(root: Path) -> None:
    """Refuse to begin a run that could not even write its logs.

    Args:
        root: the project.

    Raises:
        StageFailed: a disk that a run writes to is as good as full.
    """
    for name in WRITTEN:
        folder = root / name
        free = shutil.disk_usage(folder).free if folder.is_dir() else DISK_LEAST
        if free < DISK_LEAST:
            raise StageFailed(
                f"{folder}: {free / MIB:.1f} MiB are free on its disk, wanted at least {DISK_LEAST // MIB} MiB to "
                "begin a run; free some space (`ratchet clean` frees .ratchet/tmp) and run the command again"
            )


def model_cache() -> Check:
    """The folder that models from the Hugging Face hub are kept in."""
    home = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"), "hub"
    )
    folder = Path(home)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    models = len(list(folder.glob("models--*"))) if folder.is_dir() else 0
    if not os.access(nearest, os.W_OK):
        return Check(
            name="model cache",
            state="warn",
            found=f"{folder} is not writable",
            remedy="Set HF_HOME to a folder of yours; only base models from the hub need it.",
        )
    offline = " (offline)" if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on") else ""
    return Check(name="model cache", state="ok", found=f"{folder}, {models} model(s){offline}")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
