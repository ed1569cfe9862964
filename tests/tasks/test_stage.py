import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.failures import StageError
from tasks.lock_file import read_lock
from tasks.lock_mend import keep_copy
from tasks.process import Ended
from tasks.stage import StageResult, explain, run_stage
from tasks.timings import read_timing
from tests.tiny_project import alive, count, edit, wait_for

REPOSITORY = Path(__file__).parents[2]


def run(root: Path, name: str = "first", **options: object) -> StageResult:
    return run_stage(name, root=root, on_line=lambda line: None, **options)  # type: ignore[arg-type]


def failing(root: Path, how: str) -> StageError:
    edit(root, "first: {word: one, fail: no", f"first: {{word: one, fail: {how}")
    with pytest.raises(StageError) as caught:
        run(root)
    return caught.value


def pid_of(root: Path, stage: str) -> int:
    path = root / ".ratchet" / "tmp" / f"pid-{stage}"
    wait_for(lambda: path.is_file() and path.read_text().isdigit())
    return int(path.read_text())


def test_a_stage_runs_once_and_is_cached_then(new_project: Path) -> None:
    lines: list[str] = []
    done = run_stage("first", root=new_project, on_line=lines.append)
    assert (done.status, count(new_project, "first")) == ("run", 1)
    assert (new_project / "first.txt").read_text() == "oneraw\n"
    assert lines == ["Running stage 'first':", "> exec python step.py first", "first: begins", "first: done"]
    timing = read_timing(new_project, "first")
    assert timing is not None
    assert timing.seconds == pytest.approx(done.seconds, abs=0.01)
    assert done.peak_mb > 5
    assert run(new_project).status == "cached"
    assert run(new_project, force=True).status == "run"
    assert count(new_project, "first") == 2


def test_the_stages_own_sentence_and_code_come_through(new_project: Path) -> None:
    error = failing(new_project, "bad_input")
    assert (error.exit_code, error.sentence, error.retryable) == (2, "first: raw.txt: wrong", False)


def test_a_stage_that_gave_up(new_project: Path) -> None:
    error = failing(new_project, "failed")
    assert (error.exit_code, error.failure.kind, error.retryable) == (1, "failed", False)


def test_a_stage_without_a_note_is_told_by_its_last_line(new_project: Path) -> None:
    error = failing(new_project, "plain")
    assert error.sentence == "first: exited with 1: ValueError: no reason given"
    assert not error.retryable


def test_a_killed_stage_may_be_tried_again(new_project: Path) -> None:
    error = failing(new_project, "kill")
    assert error.failure.kind == "signal"
    assert "SIGKILL" in error.sentence


def test_what_dvc_refuses_is_bad_input(new_project: Path) -> None:
    (new_project / "raw.txt").unlink()
    with pytest.raises(StageError) as caught:
        run(new_project)
    assert caught.value.exit_code == 2
    assert "raw.txt" in caught.value.sentence


def test_an_old_note_is_not_mistaken_for_a_new_one(new_project: Path) -> None:
    failing(new_project, "bad_input")
    edit(new_project, "fail: bad_input", "fail: plain")
    with pytest.raises(StageError, match="no reason given"):
        run(new_project)


def test_cancelling_leaves_no_process(new_project: Path) -> None:
    edit(new_project, "sleep: 0.0", "sleep: 60.0")
    stop = threading.Event()
    threading.Thread(target=lambda: (pid_of(new_project, "first"), stop.set())).start()
    started = time.monotonic()
    with pytest.raises(StageError) as caught:
        run(new_project, cancelled=stop.is_set)
    assert caught.value.failure.kind == "cancelled"
    assert time.monotonic() - started < 20
    assert not alive(pid_of(new_project, "first"))


def test_a_killed_runner_leaves_no_process(new_project: Path) -> None:
    edit(new_project, "sleep: 0.0", "sleep: 60.0")
    code = "import sys; from pathlib import Path; from tasks.stage import run_stage\n"
    code += "run_stage('first', root=Path(sys.argv[1]), on_line=print)"
    runner = subprocess.Popen([sys.executable, "-c", code, new_project], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    with runner:
        stage = pid_of(new_project, "first")
        parent = int(Path(f"/proc/{stage}/stat").read_text().rpartition(")")[2].split()[1])
        runner.kill()
    wait_for(lambda: not alive(stage) and not alive(parent))
    edit(new_project, "sleep: 60.0", "sleep: 0.0")
    assert run(new_project).status == "run"  # the entry of the dead dvc in its read-write lock is no obstacle


def test_a_busy_file_is_waited_for(new_project: Path) -> None:
    edit(new_project, "sleep: 0.0", "sleep: 2.0")
    lines: list[str] = []
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    other = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-q", "-s", "first"],
        cwd=new_project,
        env={**env, "DVC_SITE_CACHE_DIR": str(new_project / ".ratchet" / "tmp" / "dvc")},
    )
    with other:
        pid_of(new_project, "first")
        done = run_stage("first", root=new_project, on_line=lines.append)
    assert other.returncode == 0
    assert done.status == "cached"
    assert count(new_project, "first") == 1
    assert any("waiting" in line and "is busy" in line for line in lines)


def test_two_stages_at_once_both_end_in_the_lock(finished_project: Path) -> None:
    edit(finished_project, "word: two, fail: no, sleep: 0.0", "word: TWO, fail: no, sleep: 0.5")
    edit(finished_project, "word: three, fail: no, sleep: 0.0", "word: THREE, fail: no, sleep: 0.5")
    threads = [threading.Thread(target=run, args=(finished_project, name)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lock = read_lock(finished_project)
    assert lock["left"].params["left"]["word"] == "TWO"
    assert lock["right"].params["right"]["word"] == "THREE"


def test_a_finished_command_is_recorded_when_only_the_lock_failed(new_project: Path) -> None:
    """The lock file of DVC's own lock list is held for the moment in which the command ends."""
    edit(new_project, "sleep: 0.0", "sleep: 1.0")
    holder_code = (
        "import sys, time, zc.lockfile\n"
        "lock = zc.lockfile.LockFile(sys.argv[1]); print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    guard = new_project / ".dvc" / "tmp" / "rwlock.lock"
    holders: list[subprocess.Popen[bytes]] = []

    def hold() -> None:
        pid_of(new_project, "first")
        holders.append(subprocess.Popen([sys.executable, "-c", holder_code, guard, "7"], stdout=subprocess.DEVNULL))

    thread = threading.Thread(target=hold)
    thread.start()
    lines: list[str] = []
    done = run_stage("first", root=new_project, on_line=lines.append, busy_seconds=60)
    thread.join()
    for holder in holders:
        holder.wait()
    assert any("Unable to acquire lock" in line for line in lines)
    assert done.status == "run"
    assert count(new_project, "first") == 1  # not trained twice
    assert run(new_project).status == "cached"


def test_a_lost_rank_may_be_tried_again(tmp_path: Path) -> None:
    lines = ("Running stage 'ppo':", "  exitcode  : -9 (pid: 12)", "ERROR: failed to reproduce 'ppo': failed to run: "
             "exec python x, exited with 1")  # fmt: skip
    ended = Ended(exit_code=255, lines=lines, seconds=1.0, peak_mb=1.0, cancelled=False)
    assert explain(tmp_path, "ppo", ended).kind == "signal"


def test_a_full_disk_is_not_called_bad_input(tmp_path: Path) -> None:
    lines = ("ERROR: failed to reproduce 'ppo': [Errno 28] No space left on device",)
    failure = explain(tmp_path, "ppo", Ended(exit_code=255, lines=lines, seconds=1.0, peak_mb=1.0, cancelled=False))
    assert failure.exit_code == 1
    assert "free space" in failure.sentence


def test_a_full_disk_in_the_words_of_a_library_gets_its_cure(tmp_path: Path) -> None:
    note = {"stage": "sft", "exit_code": 1, "kind": "failed", "sentence": "SafetensorError: No space left on device"}
    path = tmp_path / ".ratchet" / "tmp" / "failures" / "sft.json"
    path.parent.mkdir(parents=True)
    ended = Ended(exit_code=255, lines=(), seconds=1.0, peak_mb=1.0, cancelled=False)
    cured = "SafetensorError: No space left on device; free space or rights, then run again"
    for sentence in (note["sentence"], cured):
        path.write_text(json.dumps({**note, "sentence": sentence}))
        assert explain(tmp_path, "sft", ended).sentence == cured


def test_a_lock_that_a_failed_attempt_left_torn_is_put_right(finished_project: Path) -> None:
    path = finished_project / "dvc.lock"
    good = path.read_bytes()
    keep_copy(finished_project)
    path.write_bytes(good[: len(good) // 2] + b"\n  [")
    with pytest.raises(StageError):
        run_stage("first", on_line=lambda _: None, root=finished_project)
    assert path.read_bytes() == good
