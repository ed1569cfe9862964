import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.errors import StageFailed
from tasks import machine

ROOT = Path(__file__).parents[2]
PROJECT = '[project]\nname = "x"\ndependencies = ["numpy>=1", "pyyaml", "winthing; sys_platform == \'win32\'"]\n'


def project(folder: Path, constraints: str, dependencies: str = PROJECT) -> Path:
    (folder / "constraints.txt").write_text(constraints)
    (folder / "pyproject.toml").write_text(dependencies)
    return folder


def test_python_is_this_one() -> None:
    found = machine.python()
    assert found.state == "ok"
    assert found.found.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert machine.python().state == "fail"


def test_pinned_packages_are_ok_and_a_build_label_is_no_other_version(tmp_path: Path) -> None:
    pins = (
        f"# pins\nnumpy=={version('numpy')}  # arrays\ntorch=={version('torch').split('+')[0]}\nabsent-package==1.0\n"
    )
    found = machine.packages(project(tmp_path, pins))
    assert (found.state, found.found) == ("ok", "2 installed as pinned in constraints.txt")


def test_another_version_is_a_warning_that_names_it(tmp_path: Path) -> None:
    found = machine.packages(project(tmp_path, "numpy==0.0.1\n"))
    assert found.state == "warn"
    assert found.found == f"numpy {version('numpy')} (pinned 0.0.1)"
    assert "constraints.txt" in found.remedy


def test_an_absent_dependency_fails(tmp_path: Path) -> None:
    wanted = '[project]\nname = "x"\ndependencies = ["numpy", "no-such-package>=2"]\n'
    found = machine.packages(project(tmp_path, "", wanted))
    assert (found.state, found.found) == ("fail", "not installed: no-such-package")


def test_dependencies_of_other_platforms_are_passed_over(tmp_path: Path) -> None:
    assert machine.direct_dependencies(project(tmp_path, "") / "pyproject.toml") == ["numpy", "pyyaml"]


def test_the_projects_own_dependencies_are_installed() -> None:
    assert machine.packages(ROOT).state in ("ok", "warn")


def test_torch_names_its_build() -> None:
    import torch

    found = machine.torch_build()
    assert found.found.startswith(f"torch {torch.__version__}")


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    found = machine.torch_build()
    assert found.state == "warn"
    assert "does not use the NVIDIA GPU" in found.found


def test_products_are_right_on_this_machine() -> None:
    found = machine.matmul()
    assert found.state == "ok"
    assert "GFLOP/s" in found.found


def test_wrong_products_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MATMUL_TOLERANCE", 0.0)
    assert machine.matmul().state == "fail"


def test_more_threads_than_cores_is_a_warning() -> None:
    assert machine.processors({"sft": 1}).state == "ok"
    found = machine.processors({"sft": 100_000, "ppo": 1})
    assert found.state == "warn"
    assert found.found.endswith("fewer than the threads of sft (100000)")


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30, total=2**32))
    found = machine.memory()
    assert (found.state, found.found) == ("warn", "1.0 of 4.0 GiB free")


@pytest.mark.parametrize(("free", "state"), [(2**29, "fail"), (2 * 2**30, "warn"), (9 * 2**30, "ok")])
def test_space_on_disk(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert machine.disk(tmp_path).state == state


def test_a_run_does_not_begin_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"state": 2**30, "data": 2**30}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path.name]))
    (tmp_path / ".ratchet" / "state").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    machine.require_space(tmp_path)
    free["data"] = 3 * 2**20
    with pytest.raises(StageFailed, match=r"data: 3\.0 MiB are free on its disk, wanted at least 32 MiB"):
        machine.require_space(tmp_path)


def test_the_model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    found = machine.model_cache()
    assert (found.state, found.found) == ("ok", f"{tmp_path / 'hub'}, 1 model(s)")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert machine.model_cache().state == "warn"
