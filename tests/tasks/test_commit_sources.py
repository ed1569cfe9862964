from pathlib import Path

import pytest

from tasks.commit_sources import first_that_fits, pointed, source_differences
from tasks.git import git
from tasks.lock_file import lineage, read_lock
from tests.tiny_project import dvc, edit
from tests.versioned_project import retag, versioned_copy


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp() / "registry-base"
    return versioned_copy(base, tmp_path_factory.mktemp("sources") / "project")


def test_a_tree_that_outputs_were_made_from_has_no_differences(versioned: Path) -> None:
    lock = read_lock(versioned)
    for stage in ("sft", "judge", "ppo"):
        assert source_differences(versioned, "HEAD", lineage(lock, stage)) == []


def test_each_kind_of_difference_is_named(versioned: Path) -> None:
    lock = lineage(read_lock(versioned), "ppo")
    source = retag(versioned, "policy/v11", "policy/v2", {"seed/ppo/config.json": "{}"})
    (found,) = source_differences(versioned, source, lock)
    assert found.startswith("seed/ppo is ")
    assert "and ppo was made from" in found
    params = (versioned / "params.yaml").read_text().replace("updates: 3", "updates: 4")
    changed = retag(versioned, "policy/v12", "policy/v2", {"params.yaml": params})
    assert source_differences(versioned, changed, lock) == ["params.yaml: ppo.updates is 4, and ppo was made with 3"]
    graph = (versioned / "dvc.yaml").read_text().replace("cp seed/ppo.json", "cp -f seed/ppo.json")
    command = retag(versioned, "policy/v13", "policy/v2", {"dvc.yaml": graph})
    assert source_differences(versioned, command, lock) == [
        "dvc.yaml: the command of ppo is not the one that it was made with"
    ]
    pointer = "outs:\n- {md5: 0000.dir, path: demonstrations}\n"
    raw = retag(versioned, "policy/v14", "policy/v2", {"data/validated/demonstrations.dvc": pointer})
    assert any("data/validated/demonstrations is 0000" in line for line in source_differences(versioned, raw, lock))
    best = git(versioned, "rev-parse", "refs/tags/ratchet/policy/v2")
    assert first_that_fits(versioned, [changed, command, best], lock) == (best, [])
    assert first_that_fits(versioned, [changed, command], lock)[0] == changed


def test_a_folder_is_hashed_with_the_pointers_and_outputs_in_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    dvc(tmp_path, "init", "-q")
    raw = tmp_path / "data" / "raw"
    (raw / "made").mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("/data/raw/?*\n!/data/raw/*.dvc\n/out\n")
    (raw / "own.jsonl").write_text("own\n")
    (raw / "folder").mkdir()
    (raw / "folder" / "b.jsonl").write_text("b\n")
    dvc(tmp_path, "add", "-q", "data/raw/own.jsonl", "data/raw/folder")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  make:\n    cmd: mkdir -p data/raw/made && echo z > data/raw/made/z.txt\n    outs: [data/raw/made]\n"
        "  read:\n    cmd: cp -r data/raw out\n    deps: [data/raw]\n    outs: [out]\n"
    )
    dvc(tmp_path, "repro", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    lock = lineage(read_lock(tmp_path), "read")
    assert set(lock) == {"make", "read"}
    assert source_differences(tmp_path, "HEAD", lock) == []
    edit(tmp_path, "own", "other", file="data/raw/own.jsonl")
    dvc(tmp_path, "add", "-q", "data/raw/own.jsonl")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "second")
    (found,) = source_differences(tmp_path, "HEAD", lock)
    assert found.startswith("data/raw is ")
    assert source_differences(tmp_path, "HEAD~1", lock) == []


def test_pointers_with_a_folder_of_their_own() -> None:
    text = b"wdir: ..\nouts:\n- {md5: aa, path: x}\n- {path: unhashed}\n"
    assert list(pointed("data/raw/x.dvc", text)) == [("data/x", "aa")]
