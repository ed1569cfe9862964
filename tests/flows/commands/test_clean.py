import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from flows.cli import main
from rlhf.checkpoint_key import stage_key
from rlhf.config import read_params

LONG_AGO = time.time() - 3600
DVC = "stages:\n  sft:\n    cmd: exec python -m rlhf.launch sft\n    params: [sft]\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RATCHET_ROOT", str(tmp_path))
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text("sft:\n  rate: 1\n")
    for name in ("data/models/sft/model.safetensors", ".ratchet/state/mlflow.db"):
        add(tmp_path / name)
    return tmp_path


def add(file: Path, *, when: float = LONG_AGO) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * 1000)
    for path in (file, *file.parents[:3]):
        os.utime(path, (when, when))
    return file


def clean(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str | None]:
    assert main(["clean", "--json", *words]) == 0
    return {row["path"]: row["kept"] for row in json.loads(capsys.readouterr().out)["paths"]}


def test_nothing_to_free(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean"]) == 0
    assert capsys.readouterr().out == "nothing to free in .ratchet/tmp\n"


def test_only_leftovers_in_tmp_go(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp = project / ".ratchet" / "tmp"
    orphan = add(tmp / "checkpoints" / "sft" / "0123456789abcdef" / "1.pt")
    log, live, timing = (add(tmp / name) for name in ("logs/sft.log", "live/sft/k.jsonl", "timings/sft.json"))
    reference = add(tmp / "logprobs" / "0123456789abcdef.safetensors")
    assert main(["clean"]) == 0
    shown = capsys.readouterr().out
    assert "freed 3.0 kB" in shown
    assert not orphan.exists()
    assert not log.exists()
    assert not reference.exists()
    assert live.exists()
    assert timing.exists()
    assert main(["clean", "--all-tmp"]) == 0
    assert not live.exists()
    assert not timing.exists()
    assert (project / "data/models/sft/model.safetensors").exists()
    assert (project / ".ratchet/state/mlflow.db").exists()


def test_a_dry_run_removes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = add(project / ".ratchet" / "tmp" / "logs" / "sft.log")
    assert main(["clean", "--dry-run"]) == 0
    assert "would free 1.0 kB" in capsys.readouterr().out
    assert log.exists()


def test_the_checkpoint_that_the_next_run_resumes_from_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = stage_key("sft", (), read_params(project / "params.yaml"), project)
    folder = project / ".ratchet" / "tmp" / "checkpoints" / "sft" / key
    add(folder / "1.pt")
    path = str(folder.relative_to(project))
    assert clean(capsys) == {path: "kept: the next run resumes from it"}
    (project / "params.yaml").write_text("a: [")
    assert clean(capsys)[path] is not None
    assert clean(capsys, "--all-tmp") == {path: None}
    assert not folder.exists()


def test_what_is_being_written_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = add(project / ".ratchet" / "tmp" / "checkpoints" / "sft" / "0123456789abcdef" / "1.pt", when=time.time())
    assert list(clean(capsys, "--all-tmp").values()) == ["kept: a stage wrote here a moment ago"]
    assert file.exists()


def test_a_lock_that_is_held_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = add(project / ".ratchet" / "tmp" / "slots" / "cpu-0")
    free = add(project / ".ratchet" / "tmp" / "slots" / "cpu-1")
    with held.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert clean(capsys, "--all-tmp") == {
            ".ratchet/tmp/slots/cpu-0": "kept: its lock is held",
            ".ratchet/tmp/slots/cpu-1": None,
        }
    assert held.exists()
    assert not free.exists()


def test_links_go_and_what_they_point_to_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = project / ".ratchet" / "tmp" / "weights" / "0123"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").symlink_to(project / "data/models/sft/model.safetensors")
    os.link(project / ".ratchet/state/mlflow.db", weights / "linked")
    assert main(["clean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] < 1000  # the link itself, not what it names
    assert not weights.exists()
    assert (project / "data/models/sft/model.safetensors").stat().st_size == 1000
    assert (project / ".ratchet/state/mlflow.db").stat().st_size == 1000


def test_unfinished_copies_in_the_cache_go_once_nobody_writes_them(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = project / ".dvc" / "cache" / "files" / "md5" / "ab"
    torn, fresh, whole = add(cache / ".x1.tmp"), add(cache / ".x2.tmp", when=time.time()), add(cache / "cdef")
    assert clean(capsys) == {".dvc/cache/files/md5/ab/.x1.tmp": None}
    assert (torn.exists(), fresh.exists(), whole.exists()) == (False, True, True)


def test_what_checkpoints_take_is_shown(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = stage_key("sft", (), read_params(project / "params.yaml"), project)
    add(project / ".ratchet" / "tmp" / "checkpoints" / "sft" / key / "1.pt")
    assert main(["clean"]) == 0
    assert capsys.readouterr().out.endswith("checkpoints now: sft 1.0 kB\n")
    assert main(["clean", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoints"] == {"sft": 1000}
