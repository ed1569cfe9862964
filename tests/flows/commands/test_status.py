import json
import os
import time
from pathlib import Path

import pytest

from flows.cli import main
from flows.run_lock import run_lock
from tasks.timings import write_timing
from tests.tiny_project import edit, spoil


def test_status_for_a_person(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_timing(finished_project, "left", seconds=12.0, peak_mb=345.6)
    edit(finished_project, "word: two", "word: TWO")
    assert main(["status", "--root", str(finished_project)]) == 0
    out = capsys.readouterr().out
    assert "12 s" in out
    assert "346" in out
    assert "`ratchet plan` says why a stage is stale" in out
    assert "nothing has been published yet" in out
    assert not (finished_project / ".ratchet" / "state" / "mlflow.db").exists()  # looking makes no empty store


def test_status_for_a_program_while_a_run_goes_on(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_lock(finished_project):
        live = finished_project / ".ratchet" / "tmp" / "live" / "right" / "key.jsonl"
        live.parent.mkdir(parents=True)
        live.write_text(json.dumps({"step": 3, "total": 9, "time": time.time()}) + "\n")
        assert main(["status", "--json", "--root", str(finished_project)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["running"]["pid"] == os.getpid()
    states = {stage["name"]: stage["state"] for stage in document["stages"]}
    assert states == {"first": "fresh", "left": "fresh", "right": "running", "last": "fresh"}
    assert document["champion"] is None
    assert document["unpublished"] == []


def test_damage_and_checkpoints_are_named(finished_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (finished_project / "last.txt").read_bytes()
    for file in (finished_project / ".dvc" / "cache" / "files").rglob("*"):
        if file.is_file() and file.read_bytes() == text:
            spoil(file)
    kept = finished_project / ".ratchet" / "tmp" / "checkpoints" / "left" / "key" / "1.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x" * 2000)
    assert main(["status", "--root", str(finished_project)]) == 0
    out = capsys.readouterr().out
    assert "last: last.txt is missing or damaged in DVC's cache (its file), `ratchet run` copies" in out
    assert "checkpoints: left 2.0 kB; `ratchet clean` frees those that no run would resume from" in out
