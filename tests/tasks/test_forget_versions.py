"""Versions are judged on a real lock file, with raw and validated data that `validate` itself would have written."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.data.records import pair, with_origin
from tasks.dvc_store import dvc_places, object_path, output_files
from tasks.forget_rows import FoundRows, Wanted, find_rows
from tasks.forget_versions import affected_versions
from tasks.git import git
from tasks.lock_file import read_lock
from tasks.snapshot import snapshot, tag_version
from tasks.version_commit import commit_version
from tests.tiny_project import dvc

GRAPH = """\
stages:
  validate:
    cmd: mkdir -p data/validated && cp -r seed/pairs seed/prompts data/validated
    deps: [data/raw, seed]
    params: [validate.files]
    outs: [data/validated/pairs, data/validated/prompts]
  sft:
    cmd: mkdir -p data/models && cp -r data/validated/prompts data/models/sft
    deps: [data/validated/prompts]
    outs: [data/models/sft]
  reward:
    cmd: mkdir -p data/models && cp -r data/validated/pairs data/models/reward
    deps: [data/validated/pairs, data/models/sft]
    outs: [data/models/reward]
"""
ROWS = [
    {"id": name, "prompt": f"Where is {name}?", "chosen": "Here.", "rejected": "No."} for name in ("a", "b", "c", "d")
]


def record(row: dict[str, str]) -> dict[str, object]:
    content = pair([{"role": "user", "content": row["prompt"]}], row["chosen"], row["rejected"])
    return with_origin("pair", content, source="own.jsonl", identity=row["id"], meta={})


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A project with reward-model/1, trained on a, with b held out and c refused, and policy/1, which knows none."""
    root = tmp_path_factory.mktemp("forget") / "project"
    (root / "mlflow").mkdir(parents=True)
    (root / "mlflow/registry.yaml").write_bytes((project / "mlflow/registry.yaml").read_bytes())
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text("validate: {files: [own.jsonl]}\n")
    (root / ".gitignore").write_text("/.ratchet/\n/data/*\n!/data/raw/\n/data/raw/*\n!/data/raw/*.dvc\n")
    write(root / "data/raw/own.jsonl", [dict(row) for row in ROWS[:3]])
    write(root / "seed/pairs/train.jsonl", [record(ROWS[0])])
    write(root / "seed/pairs/test.jsonl", [record(ROWS[1])])
    write(root / "seed/prompts/train.jsonl", [{"id": "x", "prompt": [{"role": "user", "content": "Other?"}]}])
    git(root, "init", "-q")
    dvc(root, "init", "-q")
    dvc(root, "add", "-q", "data/raw/own.jsonl")
    dvc(root, "repro", "-q")
    lock, base = read_lock(root), snapshot(root, "run-1")
    for stage, name in (("reward", "reward-model"), ("sft", "policy")):
        commit = commit_version(root, base, stage, lock[stage].outs[f"data/models/{stage}"], lock, {})
        assert commit is not None
        tag_version(root, name, 1, commit)
    # A later raw file has one row more, of which no version knows.
    write(root / "data/raw/own.jsonl", [dict(row) for row in ROWS])
    dvc(root, "add", "-q", "data/raw/own.jsonl")
    return root


def verdicts(root: Path, name: str) -> dict[str, str]:
    wanted = Wanted(ids=frozenset([name]))
    present: FoundRows = find_rows(root / "data/raw/own.jsonl", wanted)
    return {one.version: one.verdict for one in affected_versions(root, ["own.jsonl"], wanted, present.contents)}


@pytest.fixture
def lost(project: Path) -> Iterator[Path]:
    """The project without any bytes of the validated pairs."""
    places, md5 = dvc_places(project), read_lock(project)["validate"].outs["data/validated/pairs"]
    names = output_files(places, md5, "data/validated/pairs").values()
    kept = {object_path(places.cache, name): object_path(places.cache, name).read_bytes() for name in names}
    for path in kept:
        path.unlink()
    yield project
    for path, content in kept.items():
        path.write_bytes(content)


def test_each_version_is_judged_by_the_data_it_was_made_from(project: Path) -> None:
    assert verdicts(project, "a") == {"reward-model/1": "trained"}
    assert verdicts(project, "b") == {"reward-model/1": "held out"}
    assert verdicts(project, "c") == {}  # validate had kept it out
    assert verdicts(project, "d") == {}  # it was not there yet


def test_data_that_are_gone_leave_a_doubt(lost: Path) -> None:
    assert verdicts(lost, "a") == {"reward-model/1": "maybe"}
    assert verdicts(lost, "c") == {"reward-model/1": "maybe"}
    assert verdicts(lost, "d") == {}


def test_when_the_old_raw_file_is_gone_the_present_rows_are_looked_for(project: Path) -> None:
    pointer = git(project, "show", "refs/tags/ratchet/policy/v1:data/raw/own.jsonl.dvc")
    md5 = next(line.split()[-1] for line in pointer.splitlines() if "md5:" in line)
    victim = object_path(dvc_places(project).cache, md5)
    content = victim.read_bytes()
    victim.unlink()
    assert verdicts(project, "a") == {"reward-model/1": "trained", "policy/1": "maybe"}
    assert verdicts(project, "d") == {"reward-model/1": "maybe", "policy/1": "maybe"}
    victim.write_bytes(content)


def test_a_version_that_was_made_without_the_file_has_nothing_to_do_with_it(project: Path) -> None:
    wanted = Wanted(ids=frozenset(["a"]))
    assert affected_versions(project, ["another.jsonl"], wanted, {}) == []


def test_a_version_is_told_in_words(project: Path) -> None:
    (found,) = affected_versions(project, ["own.jsonl"], Wanted(ids=frozenset(["a"])), {})
    assert str(found) == "reward-model/1, made by reward, was trained on it"
