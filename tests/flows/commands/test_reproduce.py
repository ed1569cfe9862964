import json
import subprocess
from pathlib import Path

import pytest

from flows.cli import main
from flows.commands.reproduce import lines
from tasks.git import git
from tasks.reproduce import Rebuilt, Row

pytest_plugins = ["tests.registry_fixtures"]


def test_the_challenger_is_found_by_the_registry_and_rebuilt(
    published: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = ["--root", str(published)]
    assert main(["reproduce", "policy@challenger", "--keep", "--folder", str(tmp_path / "tree"), *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["reference"], found["equal"], found["kept"]) == ("policy/2", True, True)
    assert found["notes"] == []
    assert found["commit"] == git(published, "rev-parse", "refs/tags/ratchet/policy/v2")
    assert (tmp_path / "tree" / "data/models/ppo/model.safetensors").is_file()
    git(published, "worktree", "remove", "--force", str(tmp_path / "tree"))
    assert main(["reproduce", "policy@nobody", *where]) == 2
    assert "the registry has no version of that alias" in capsys.readouterr().err


def test_a_fresh_clone_without_a_registry_rebuilds_from_its_remotes(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["git", "clone", "-q", "--bare", str(published), str(tmp_path / "bare.git")], check=True)
    git(tmp_path, "clone", "-q", "--no-tags", "--no-checkout", str(tmp_path / "bare.git"), "clone")
    clone = tmp_path / "clone"
    git(clone, "fetch", "-q", "origin", "refs/tags/ratchet/policy/v1")
    git(clone, "checkout", "-q", "--detach", "FETCH_HEAD")
    assert main(["reproduce", "policy/v1", "--root", str(clone)]) == 0
    said = capsys.readouterr()
    assert "sft: equal" in said.err
    assert "policy/1 is rebuilt bit for bit: 3 outputs are equal" in said.out
    assert not (clone / ".ratchet/state/mlflow.db").exists()


def test_the_tables_name_the_first_difference_and_both_sides() -> None:
    found = Rebuilt(reference="policy/3", commit="c" * 40, notes=["believe the tag"], folder=Path("x"))
    found.rows = [Row(stage="sft", output="data/models/sft", recorded="a" * 36, rebuilt="b" * 36)]
    found.rows.append(Row(stage="sft", output="data/metrics/sft.json", recorded="c" * 32, rebuilt=None))
    found.environment = {"sft": {"torch": ("2.12", "2.13")}}
    found.pins = {"torch": ("2.12", None)}
    found.left_out = ["ppo"]
    text = "\n".join(lines(found))
    assert "note: believe the tag" in text
    assert "sft    data/models/sft        aaaaaaaaaaaa  bbbbbbbbbbbb  no" in text
    assert "sft    data/metrics/sft.json  cccccccccccc  absent        no" in text
    assert "torch  2.12      2.13  sft" in text
    assert "torch    2.12            -" in text
    assert "policy/3 differs: the first stage with another output is sft" in text
    assert "not computed, since they read what differs: ppo" in text
    assert "the work tree is kept: x" in text
    found.environment, found.pins = {}, {}
    assert "processor, threads and libraries are those that were recorded" in "\n".join(lines(found))
