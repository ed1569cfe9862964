"""Kept log-probabilities: found only where they are what would be computed, whole or not at all, and bounded."""

import ast
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf import logprob_cache
from rlhf.checkpoint import KEY_VARIABLE
from rlhf.logprob_cache import FOLDER, LogprobCache, folder_digest, prune

IDS = [[[1, 2], [3]], [[4], [5, 6]]]
VALUES = torch.tensor([[-1.0, -2.5], [-3.0, -1e-7]])
FORBIDDEN = torch.tensor([True, False, False])


class Counter:
    """Computes the values and knows how often."""

    def __init__(self, values=VALUES):
        self.values, self.calls = values, 0

    def __call__(self):
        self.calls += 1
        return self.values


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(KEY_VARIABLE, "k")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    return tmp_path


def cache(*, forbidden=FORBIDDEN, rows=8, precision="float32"):
    return LogprobCache(Path("model"), forbidden, rows=rows, precision=precision)


def fill():
    """The one file that a first call leaves."""
    assert torch.equal(cache().get(IDS, (2, 2), Counter()), VALUES)
    [file] = FOLDER.iterdir()
    return file


def calls(found, ids=IDS, shape=(2, 2)):
    compute = Counter()
    assert torch.equal(found.get(ids, shape, compute), VALUES)
    return compute.calls


def test_the_second_call_finds_the_same_bits(project):
    fill()
    assert calls(cache()) == 0


def test_outside_a_project_nothing_is_kept(project, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE)
    assert calls(LogprobCache(Path("nowhere"), FORBIDDEN, rows=1, precision="float32")) == 1
    assert not Path(".ratchet").exists()


def test_whatever_the_bits_depend_on_changes_the_key(project, monkeypatch):
    fill()
    assert calls(cache(), ids=[[[1, 2], [3]], [[4], [5, 7]]]) == 1
    assert calls(cache(), ids=[[[1], [2, 3]], [[4], [5, 6]]]) == 1
    assert calls(cache(forbidden=~FORBIDDEN)) == 1
    assert calls(cache(rows=4)) == 1
    assert calls(cache(precision="bfloat16")) == 1
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        assert calls(cache()) == 1
    with monkeypatch.context() as patch:
        patch.setattr(logprob_cache, "SOURCES", ("batches",))
        assert calls(cache()) == 1
    Path("model/config.json").write_text("{ }")
    assert calls(cache()) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-3]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\1"),
        lambda file: save_file({"logprobs": VALUES}, file),
        lambda file: save_file({"other": VALUES}, file),
        lambda file: save_file({"logprobs": VALUES.double()}, file, {"key and hash": file.stem}),
    ],
    ids=["torn", "empty", "one byte", "unsigned", "another name", "another type"],
)
def test_a_torn_or_foreign_file_is_reported_and_written_again(project, caplog, spoil):
    file = fill()
    good = file.read_bytes()
    spoil(file)
    with caplog.at_level("WARNING"):
        assert calls(cache()) == 1
    assert "computing the reference's log-probabilities again" in caplog.text
    assert file.read_bytes() == good
    assert [entry.name for entry in FOLDER.iterdir()] == [file.name]


def test_a_file_under_another_key_is_not_believed(project, caplog):
    file = fill()
    good = file.read_bytes()
    assert calls(cache(rows=4)) == 1
    [other] = [entry for entry in FOLDER.iterdir() if entry != file]
    other.write_bytes(good)
    assert calls(cache(rows=4)) == 1
    assert "is not what was written there" in caplog.text


def test_the_files_used_longest_ago_go(project, monkeypatch):
    FOLDER.mkdir(parents=True)
    for number in range(5):
        file = FOLDER / f"{number}.safetensors"
        file.write_bytes(b"x" * 10)
        os.utime(file, (number, number))
    monkeypatch.setattr(logprob_cache, "MOST_FILES", 4)
    prune()
    assert sorted(entry.stem for entry in FOLDER.iterdir()) == ["1", "2", "3", "4"]
    monkeypatch.setattr(logprob_cache, "MOST_BYTES", 20)
    prune()
    assert sorted(entry.stem for entry in FOLDER.iterdir()) == ["3", "4"]
    monkeypatch.setattr(logprob_cache, "MOST_BYTES", 1)
    prune()
    assert [entry.stem for entry in FOLDER.iterdir()] == ["4"]


def test_reading_a_file_makes_it_the_newest(project):
    file = fill()
    os.utime(file, (1, 1))
    assert calls(cache()) == 0
    assert file.stat().st_mtime > 1


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(project, caplog):
    FOLDER.parent.mkdir(parents=True)
    FOLDER.write_text("a file stands where the folder should be")
    assert calls(cache()) == 1
    assert "cannot be written" in caplog.text


def test_the_digest_of_a_folder_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    first = folder_digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert folder_digest(tmp_path) != first
    (tmp_path / "b").rename(tmp_path / "a")
    assert folder_digest(tmp_path) == first
    (tmp_path / "a").write_text("2")
    assert folder_digest(tmp_path) != first


def test_every_module_that_the_values_go_through_is_in_the_key():
    package = Path(logprob_cache.__file__).parent
    # Token ids, which are hashed themselves, words, and what refuses or writes files.
    apart = {"errors", "preferences", "tokenizer", "model_claims", "model_files", "writing"}
    reached, waiting = set(), ["pair_logprobs", "models"]
    while waiting:
        name = waiting.pop()
        if name in reached | apart:
            continue
        reached.add(name)
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "rlhf":
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf."):
                waiting.append(node.module.removeprefix("rlhf.").replace(".", "/"))
    assert reached == set(logprob_cache.SOURCES)
