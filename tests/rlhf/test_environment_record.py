import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlhf.environment_record import FOLDER, KEPT, LARGEST, collect, write_record
from rlhf.matmul import choose

ROOT = Path(__file__).parents[2]


def test_it_says_what_results_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "somewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TORCH_HUB_TOKEN", "planted")
    choose("onednn")
    found = collect()
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (found["matmul"], found["threads"], found["world_size"]) == ("onednn", torch.get_num_threads(), 1)
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["cpu"]
    assert found["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["settings"]["MKL_CBWR"] == "AVX2"
    assert not {"TORCH_EXTENSIONS_DIR", "CUDA_VISIBLE_DEVICES", "TORCH_HUB_TOKEN"} & set(found["settings"])
    assert json.loads(json.dumps(found)) == found


def test_it_imports_nothing_and_takes_no_time() -> None:
    code = (
        "import sys, rlhf.environment_record as r\n"
        "before = set(sys.modules); found = r.collect()\n"
        "sys.stdout.write(str([n for n in set(sys.modules) - before if n.partition('.')[0] in r.LIBRARIES])"
        " + str('torch' in found))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]False"
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        collect()
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.05


def test_it_is_tied_to_what_was_written_and_old_ones_go(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    for number in range(KEPT + 3):
        metrics.write_text(str(number))
        path = write_record("ppo", [Path("metrics.json")], key=f"k{number}", root=tmp_path)
        assert path is not None
        os.utime(path, (number, number))
    kept = sorted(json.loads(file.read_text())["key"] for file in (tmp_path / FOLDER / "ppo").iterdir())
    assert len(kept) == KEPT
    assert "k0" not in kept
    assert f"k{KEPT + 2}" in kept
    assert write_record("ppo", [Path("absent.json"), Path()], key="", root=tmp_path) is None


def test_small_weights_are_named_and_large_ones_are_not(tmp_path: Path) -> None:
    for name, size in (("small", 10), ("large", LARGEST + 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x" * size)
    (tmp_path / "metrics.json").write_text("{}")
    path = write_record("ppo", [Path("small"), Path("large"), Path("metrics.json")], key="", root=tmp_path)
    assert path is not None
    assert set(json.loads(path.read_text())["outputs"]) == {"small/model.safetensors", "metrics.json"}
