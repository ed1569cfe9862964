import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.errors import BadInput
from rlhf.launch import Request, environment, keep_environment, launch_settings, parse, stage_seed

RECIPE = """
import os, time
from dataclasses import dataclass
from pathlib import Path
from rlhf.errors import BadInput

@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    files: tuple[str, ...]
    mode: str

def main(config: Config, *, seed: int, stage: str, out: Path) -> None:
    if config.mode == "bad": raise BadInput("rows.jsonl: empty; ingest a file")
    if config.mode == "full": raise OSError(28, "No space left on device", str(out))
    if config.mode == "bug": raise KeyError("x")
    if config.mode == "memory": bytearray(2**62)
    if config.mode == "sleep": out.write_text(str(os.getpid())); time.sleep(60)
    out.write_text(f"{stage} {seed} {config.files} {os.environ['OMP_NUM_THREADS']} {os.environ['PYTHONHASHSEED']}")
"""


@pytest.fixture
def toy(tmp_path: Path, project: Path) -> Path:
    """A project with one recipe of its own, seen through the package path of the real one."""
    package = tmp_path / "rlhf"
    (package / "recipes").mkdir(parents=True)
    for module in (project / "rlhf").glob("*.py"):
        (package / module.name).symlink_to(module)
    (package / "recipes/__init__.py").touch()
    (package / "recipes/toy.py").write_text(RECIPE)
    return tmp_path


def start(toy: Path, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (toy / "params.yaml").write_text(
        f"seed: 1\ndata: {{files: [a]}}\ntoy: {{threads: 2, launch: python, mode: {mode}}}\n"
    )
    line = [
        sys.executable,
        "-m",
        "rlhf.launch",
        "toy",
        "--set",
        "files=data.files",
        *(arguments or ("--out", "out.txt")),
    ]
    return subprocess.run(line, cwd=toy, capture_output=True, text=True, check=False)


def failure(toy: Path) -> dict[str, object]:
    document = json.loads((toy / ".ratchet/tmp/failures/toy.json").read_text())
    assert isinstance(document, dict)
    return document


def test_a_stage_gets_its_config_seed_paths_and_threads(toy: Path) -> None:
    result = start(toy, "good")
    assert result.returncode == 0, result.stderr
    assert (toy / "out.txt").read_text() == f"toy {stage_seed(1, 'toy')} ('a',) 2 0"


@pytest.mark.parametrize(
    ("mode", "code", "kind", "sentence"),
    [
        ("bad", 2, "bad_input", "rows.jsonl: empty; ingest a file"),
        ("full", 1, "failed", "cannot write out.txt: No space left on device"),
        ("bug", 1, "failed", "KeyError"),
    ],
)
def test_how_it_failed_is_kept_for_the_orchestrator(toy: Path, mode: str, code: int, kind: str, sentence: str) -> None:
    result = start(toy, mode)
    assert result.returncode == code
    assert failure(toy)["kind"] == kind
    assert sentence in str(failure(toy)["sentence"])
    assert ("Traceback" in result.stderr) == (mode == "bug")
    assert start(toy, "good").returncode == 0
    assert not (toy / ".ratchet/tmp/failures/toy.json").exists()


def test_paths_that_do_not_fit_the_recipe_are_named(toy: Path) -> None:
    result = start(toy, "good", "--output", "x")
    assert result.returncode == 2
    assert "lacks the paths ['out'] or has others: ['output']" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel call exists on Linux only")
def test_a_stage_dies_with_its_parent(toy: Path) -> None:
    (toy / "params.yaml").write_text("seed: 1\ndata: {files: []}\ntoy: {threads: 1, launch: python, mode: sleep}\n")
    script = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-m', 'rlhf.launch', 'toy', '--set', 'files=data.files', '--out', 'pid'])\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=toy)
    deadline = time.monotonic() + 20
    while not (toy / "pid").exists() or not (toy / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int((toy / "pid").read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("arguments", [[], ["--x"], ["toy", "out"], ["toy", "--out"], ["toy", "--a", "1", "--a", "2"]])
def test_a_broken_command_line_is_refused(arguments: list[str]) -> None:
    with pytest.raises(BadInput, match=r"rlhf\.launch"):
        parse(arguments)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (None, "no section 'sft'"),
        ({"launch": "python"}, "missing key sft.threads"),
        ({"threads": 0, "launch": "python"}, "wanted a whole number of at least 1"),
        ({"threads": 1, "launch": "bash -c x"}, "params.yaml: sft.launch is 'bash -c x'"),
    ],
)
def test_launcher_settings_are_checked(section: object, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        launch_settings({"sft": section} if section else {}, "sft")


def test_libraries_that_a_stage_loads_report_nothing_and_keep_their_threads_asleep() -> None:
    variables = environment(3)
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"
    assert variables["DO_NOT_TRACK"] == variables["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_stages_draw_from_different_streams() -> None:
    assert len({stage_seed(seed, stage) for seed in (1, 2) for stage in ("reward", "judge", "ppo")}) == 6


def test_a_stage_for_one_process_refuses_ranks_of_any_launcher(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Ranks that somebody else's launcher started, such as srun: the launch line says python.
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = start(toy, "good")
    assert result.returncode == 2
    assert result.stderr == (
        "toy: params.yaml: toy.launch starts 2 ranks, but this stage has work for one; wanted python\n"
    )


def test_lack_of_memory_is_one_sentence(toy: Path) -> None:
    result = start(toy, "memory")
    assert result.returncode == 1
    assert result.stderr == (
        "toy: this computer ran out of memory; the last checkpoint is kept; it needs a smaller model, shorter "
        "sequences or more memory\n"
    )


def test_what_a_stage_was_computed_on_is_kept_and_never_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATCHET_KEY", "ab")
    Path("metrics.json").write_text("{}")
    request = Request(stage="sft", recipe="sft", paths={"metrics": Path("metrics.json")}, borrowed={})
    keep_environment(request)
    (kept,) = Path(".ratchet/tmp/environments/sft").iterdir()
    assert json.loads(kept.read_text())["key"] == "ab"
    monkeypatch.setenv("RANK", "1")
    kept.unlink()
    keep_environment(request)  # the first rank alone writes it
    assert not kept.exists()
    monkeypatch.delenv("RANK")
    kept.parent.rmdir()
    kept.parent.write_text("in the way")
    keep_environment(request)
    assert "what sft was computed on could not be kept" in caplog.text
