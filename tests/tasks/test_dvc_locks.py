import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.dvc_locks import mend_run_cache, mend_rwlock
from tasks.stage import run_stage
from tests.tiny_project import dvc, edit


def write(root: Path, text: str) -> Path:
    file = root / ".dvc" / "tmp" / "rwlock"
    file.write_text(text)
    return file


def entry(pid: int) -> dict[str, object]:
    return {"pid": pid, "cmd": "dvc repro first"}


def test_nothing_to_mend(finished_project: Path) -> None:
    assert mend_rwlock(finished_project) == []


def test_a_torn_file_stops_dvc_and_not_us(finished_project: Path) -> None:
    edit(finished_project, "word: one", "word: ONE")
    write(finished_project, '{"write": {"/a/b": {"pid": 12')
    with pytest.raises(AssertionError, match="JSON structure is corrupted"):
        dvc(finished_project, "repro", "--single-item", "first")
    said: list[str] = []
    assert run_stage("first", root=finished_project, on_line=said.append).status == "run"
    assert any("rwlock was torn when a process was killed" in line for line in said)


def test_a_pid_that_is_used_again_by_another_program_holds_nothing(finished_project: Path) -> None:
    edit(finished_project, "word: one", "word: ONE")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        path = str(finished_project / "first.txt")
        write(finished_project, json.dumps({"write": {path: entry(other.pid)}, "read": {}}))
        with pytest.raises(AssertionError, match="is busy"):
            dvc(finished_project, "repro", "--single-item", "first")
        said: list[str] = []
        assert run_stage("first", root=finished_project, on_line=said.append).status == "run"
        other.kill()
    assert f"`dvc repro first` (process {other.pid}) was killed: its lock was removed" in said


def test_entries_of_a_living_dvc_stay(finished_project: Path) -> None:
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, "-m", "dvc", "repro"]) as living:
        content = {"write": {"/a": entry(living.pid)}, "read": {"/b": [entry(living.pid), entry(2**22 - 1)]}}
        file = write(finished_project, json.dumps(content))
        assert len(mend_rwlock(finished_project)) == 1
        living.kill()
    assert json.loads(file.read_text()) == {"write": {"/a": entry(living.pid)}, "read": {"/b": [entry(living.pid)]}}


def test_a_file_that_is_being_written_is_left_alone(finished_project: Path) -> None:
    file = write(finished_project, "{")
    with (finished_project / ".dvc" / "tmp" / "rwlock.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert mend_rwlock(finished_project) == []
    assert file.read_text() == "{"


def run_cache_folder(root: Path, word: str) -> Path:
    """Return where DVC keeps the run of `right` with that word, emptied."""
    edit(root, "word: three", f"word: {word}")
    before = set((root / ".dvc" / "cache" / "runs").glob("*/*"))
    dvc(root, "repro", "-q", "--single-item", "right")
    (folder,) = set((root / ".dvc" / "cache" / "runs").glob("*/*")) - before
    for file in folder.iterdir():
        file.unlink()
    (root / "right.txt").unlink()
    (root / "dvc.lock").write_text((root / "dvc.lock").read_text().replace(word, "lost"))
    return folder


def test_an_entry_of_the_run_cache_that_was_never_finished_stops_dvc_and_not_us(finished_project: Path) -> None:
    folder = run_cache_folder(finished_project, "THREE")
    with pytest.raises(AssertionError, match="not 'NoneType'"):  # an empty folder
        dvc(finished_project, "repro", "--single-item", "right")
    (folder / ".x.tmp").write_text("cmd: exec pyth")
    said: list[str] = []
    assert run_stage("right", root=finished_project, on_line=said.append).status == "run"
    assert "an unfinished entry of DVC's run-cache, which would stop its stage, was removed" in said
    assert not (folder / ".x.tmp").exists()


def test_the_run_cache_is_left_alone_while_dvc_works(finished_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dvc_locks.WAIT_SECONDS", 0.0)
    folder = next((finished_project / ".dvc" / "cache" / "runs").glob("*/*"))
    (folder / ".x.tmp").write_text("cmd: exec pyth")
    with (finished_project / ".dvc" / "tmp" / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert mend_run_cache(finished_project) == []
    assert len(mend_run_cache(finished_project)) == 1
