import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.errors import BadInput, StageFailed
from tasks.git import git
from tasks.reproduce import reproduce, same_everywhere
from tasks.reproduce_tree import remove
from tests.tiny_project import alive, wait_for
from tests.versioned_project import retag, state_of, versioned_copy

ROOT = Path(__file__).parents[2]


def silent(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp() / "registry-base"
    root = versioned_copy(base, tmp_path_factory.mktemp("reproduce") / "project")
    (root / ".ratchet/state/mlflow.db").unlink()
    return root


@pytest.fixture(autouse=True)
def _no_tree_stays(versioned: Path) -> Iterator[None]:
    yield
    for folder in (versioned / ".ratchet/tmp/reproduce").glob("*/"):
        remove(versioned, folder)


def test_a_version_is_rebuilt_from_raw_data_and_leaves_nothing_behind(versioned: Path) -> None:
    before = state_of(versioned)
    said: list[str] = []
    found = reproduce(versioned, "policy/2", on_line=said.append)
    assert found.first_difference is None
    assert {row.output for row in found.rows} == {
        "data/metrics/sft.json", "data/metrics/ppo.json", "data/curves/sft.csv", "data/curves/ppo.csv",
        "data/models/sft", "data/models/ppo", "data/samples/ppo.jsonl",
    }  # fmt: skip
    assert all(row.equal and row.rebuilt for row in found.rows)
    assert not found.kept
    assert not found.folder.exists()
    assert state_of(versioned) == before
    assert found.unknown == ["sft", "ppo"]  # these stages leave no record of what they were computed on
    assert found.document()["equal"] is True
    assert "sft: begins (1 of 2)" in said


def test_a_difference_is_named_and_what_reads_it_is_not_computed(versioned: Path) -> None:
    # The commit's own list of pins names another version, and the tree another model than the lock file tells of.
    other = {"seed/sft/config.json": "{}", "constraints.txt": "numpy==0.1\n"}
    retag(versioned, "policy/v21", "policy/v2", other)
    said: list[str] = []
    found = reproduce(versioned, "policy/21", on_line=said.append)
    assert found.first_difference == "sft"
    assert [row.output for row in found.rows if not row.equal] == ["data/models/sft"]
    assert found.left_out == ["ppo"]
    assert found.pins["numpy"][0] == "0.1"
    assert any(line.startswith("note: numpy is pinned to 0.1, installed is ") for line in said)
    assert any("the tagged tree is not what the lock file says it was made from" in note for note in found.notes)
    assert found.kept
    assert (found.folder / "data/models/sft/config.json").read_text() == "{}"


def test_a_difference_that_nothing_reads_does_not_end_the_comparison(versioned: Path) -> None:
    retag(versioned, "policy/v22", "policy/v2", {"seed/sft.json": '{"note": "other"}'})
    found = reproduce(versioned, "policy/22", on_line=silent)
    assert found.first_difference == "sft"
    assert [row.output for row in found.rows if not row.equal] == ["data/metrics/sft.json"]
    assert {row.stage for row in found.rows} == {"sft", "ppo"}
    assert found.left_out == []


def test_a_stage_that_fails_is_one_sentence_and_the_tree_stays(versioned: Path) -> None:
    graph = (versioned / "dvc.yaml").read_text().replace("cp -r seed/ppo ", "false && cp -r seed/ppo ")
    retag(versioned, "policy/v23", "policy/v2", {"dvc.yaml": graph})
    with pytest.raises(StageFailed, match=r"policy/23: stage ppo exited with 1.*the same command goes on there"):
        reproduce(versioned, "policy/23", start="ppo", on_line=silent)


def test_ctrl_c_leaves_no_process_and_the_same_command_goes_on(versioned: Path) -> None:
    mark = versioned.parent / "pid"
    wait = f"echo $$ > {mark}; test -e {mark}.go || sleep 300; cp -r seed/ppo "
    graph = (versioned / "dvc.yaml").read_text().replace("cp -r seed/ppo ", wait)
    retag(versioned, "policy/v24", "policy/v2", {"dvc.yaml": graph})
    # A shell that runs the tests in the background has them, and all below, ignore Ctrl-C.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from flows.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "reproduce", "policy/24", "--root", str(versioned)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as command:
        try:
            wait_for(lambda: mark.exists() and mark.read_text().strip() != "", seconds=60)
            stage = int(mark.read_text())
            command.send_signal(signal.SIGINT)
            assert command.wait(30) == 130
        finally:
            command.kill()
    assert not alive(stage)
    Path(f"{mark}.go").touch()
    found = reproduce(versioned, "policy/24", on_line=silent)
    assert found.first_difference is None
    assert found.seconds["sft"] == 0.0
    assert found.seconds["ppo"] > 0
    assert not found.folder.exists()


def test_a_folder_in_which_another_one_works_is_refused(versioned: Path) -> None:
    commit = git(versioned, "rev-parse", "refs/tags/ratchet/policy/v1")
    locks = versioned / ".ratchet/tmp/reproduce"
    locks.mkdir(parents=True, exist_ok=True)
    handle = os.open(locks / f"policy-v1-{commit[:8]}.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(BadInput, match="another `ratchet reproduce` works there"):
        reproduce(versioned, "policy/1", on_line=silent)
    os.close(handle)


def test_equal_differences_of_stages_are_told_once() -> None:
    environment = {"sft": {"torch": ("1", "2")}, "ppo": {"torch": ("1", "2"), "cpu": ("a", "b")}}
    assert same_everywhere(environment) == {("torch", "1", "2"): ["sft", "ppo"], ("cpu", "a", "b"): ["ppo"]}
