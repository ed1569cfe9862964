"""Fixtures every test may use: where the project and the real sample data are, and a quiet, offline environment."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Before any library reads them: no network, no telemetry, one thread, so that tests are quick and repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DVC_NO_ANALYTICS"] = "1"
# Nothing is written outside the project.
for name in ("TORCH_EXTENSIONS_DIR", "MPLCONFIGDIR"):
    os.environ.setdefault(name, str(ROOT / ".ratchet/tmp/tests" / name.lower()))
for name in ("RATCHET_KEY", "RATCHET_ROOT", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _no_test_inherits_a_matrix_library() -> Iterator[None]:
    """A recipe chooses for its process, which here is that of all tests."""
    yield
    if (matmul := sys.modules.get("rlhf.matmul")) is not None:
        matmul.choose("native")


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of this repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data and a real small model that lies beside the repository, where there is one."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real sample data in {folder}, which is absent")
    return folder
