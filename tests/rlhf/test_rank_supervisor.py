"""Two real ranks of a recipe that only adds numbers: one is killed, stopped, or at fault; then all of them go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf.rank_notes import RankNote
from rlhf.rank_supervisor import Verdict, _verdict, descendants

RECIPE = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path
from rlhf import distributed
from rlhf.checkpoint import Checkpoints
from rlhf.engine_settings import EngineSettings
from rlhf.errors import BadInput

@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    mode: str
    batch_size: int = 8
    engine: EngineSettings = EngineSettings()

def main(config: Config, *, seed: int, stage: str, out: Path) -> None:
    checkpoints = Checkpoints(stage, every_seconds=0.0)
    state = checkpoints.load() or {"step": 0, "sum": 0.0}
    first, total = state["step"], state["sum"]
    for step in range(first, 10):
        if step == 5 and first == 0 and distributed.rank() == 1:
            if config.mode == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if config.mode == "stop": os.kill(os.getpid(), signal.SIGSTOP)
            if config.mode == "bad": raise BadInput("rows.jsonl: row 7 is empty; mend it")
            if config.mode == "wait": out.touch(); time.sleep(600)
        total += distributed.reduce_sum({"value": step + distributed.rank()})["value"]
        checkpoints.save(step + 1, {"step": step + 1, "sum": total})
    if distributed.is_main():
        out.write_text(f"{first} {total}")
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory, project: Path) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    shutil.copytree(project / "rlhf", folder / "rlhf", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "rlhf/recipes/toy.py").write_text(RECIPE)
    return folder


def start(toy: Path, mode: str, *, timeout_s: float = 60.0, **settings: object) -> "subprocess.Popen[str]":
    launch = "torchrun --nproc-per-node=2"
    section = {"threads": 1, "launch": launch, "mode": mode, "engine": {"timeout_s": timeout_s}, **settings}
    (toy / "params.yaml").write_text(json.dumps({"seed": 1, "toy": section}))
    line = [sys.executable, "-m", "rlhf.launch", "toy", "--out", "out.txt"]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(line, cwd=toy, env=env, stderr=subprocess.PIPE, text=True)


def end(toy: Path, process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and sentence, which is also the last line of what was said; nothing may be left running."""
    said = process.communicate(timeout=120)[1]
    assert list((toy / ".ratchet/tmp/ranks").iterdir()) == []
    file = toy / ".ratchet/tmp/failures/toy.json"
    if not file.exists():
        return process.returncode, ""
    note = json.loads(file.read_text())
    assert said.splitlines()[-1] == f"toy: {note['sentence']}"
    return process.returncode, f"{note['kind']}: {note['sentence']}"


def test_a_killed_rank_is_named_and_the_next_run_goes_on_where_it_was(toy: Path) -> None:
    code, sentence = end(toy, start(toy, "kill"))
    assert code == 1
    assert sentence.startswith("signal: rank 1 of 2 ended without a word")
    assert "the next run resumes from it" in sentence
    assert end(toy, start(toy, "kill")) == (0, "")
    # Over both ranks: the sum of 2 * step + 1 for ten steps; five of them were done before.
    assert (toy / "out.txt").read_text() == "5 100.0"


def test_a_stopped_rank_is_named_when_the_time_is_over_and_is_ended(toy: Path) -> None:
    code, sentence = end(toy, start(toy, "stop", timeout_s=3.0))
    assert code == 1
    assert sentence.startswith("signal: rank 1 of 2 did not answer within engine.timeout_s = 3 s")


def test_the_rank_at_fault_is_heard_and_not_those_that_suffered(toy: Path) -> None:
    assert end(toy, start(toy, "bad")) == (2, "bad_input: rows.jsonl: row 7 is empty; mend it")
    assert end(toy, start(toy, "good", batch_size=1)) == (
        2,
        "bad_input: params.yaml: toy.batch_size is 1, wanted at least one row for each of the 2 ranks; raise it, or "
        "start fewer ranks in toy.launch",
    )


def test_nothing_outlives_the_supervisor(toy: Path) -> None:
    (toy / "out.txt").unlink(missing_ok=True)
    process = start(toy, "wait")
    deadline = time.monotonic() + 60
    while not (toy / "out.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = descendants(process.pid)
    assert len(below) == 3  # torchrun and two ranks
    process.send_signal(signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.communicate()


def note(rank: int, state: str, kind: str = "", sentence: str = "") -> RankNote:
    code = {"bad_input": 2, "": 0}.get(kind, 1)
    return RankNote(rank=rank, world=3, here=3, pid=1, state=state, exit_code=code, kind=kind, sentence=sentence)  # type: ignore[arg-type]


DONE = [note(rank, "done") for rank in range(3)]
LOST = note(0, "failed", "signal", "rank 2 did not answer")


@pytest.mark.parametrize(
    ("notes", "vanished", "code", "kind", "words"),
    [
        (DONE, [], 0, "", ""),
        (DONE, [], -6, "", ""),  # an abort at exit, after the work was done
        ([*DONE[:2], note(2, "started")], [], 0, "signal", "before its ranks were done"),
        (DONE[:2], [], 0, "signal", "before its ranks were done"),
        ([], [], 2, "bad_input", "before any rank had begun"),
        ([LOST, note(1, "failed", "bad_input", "row 7")], [2], 1, "bad_input", "row 7"),
        ([LOST, note(1, "failed", "failed", "KeyError")], [2], 1, "failed", "KeyError"),
        ([LOST, note(1, "started"), note(2, "started")], [2], 1, "signal", "rank 2 of 3 ended without a word"),
        ([LOST, note(1, "started"), note(2, "started")], [], 1, "signal", "rank 2 did not answer"),
    ],
)
def test_the_cause_is_told_and_not_what_followed_from_it(notes, vanished, code, kind, words) -> None:
    verdict = _verdict(notes, vanished, code, "torchrun", starved=False)
    assert verdict.kind == kind
    assert words in verdict.sentence
    assert verdict.exit_code == {"bad_input": 2, "": 0}.get(kind, 1)


def test_lack_of_memory_is_told_with_a_cure() -> None:
    verdict = _verdict([note(0, "started")], [0], 1, "torchrun", starved=True)
    assert isinstance(verdict, Verdict)
    assert "for lack of memory, by the kernel" in verdict.sentence
    assert "lower micro_batch" in verdict.sentence
