import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.dvc_store import dvc_places, object_path
from tasks.git import git
from tasks.lock_file import read_lock
from tasks.mlflow_store import connect
from tasks.publish import PublishReport, pending, publish
from tasks.reproduce_target import version_lock
from tasks.settings import state_dir, tracking_uri
from tasks.stage_outputs import model_outputs
from tasks.version_commit import version_record
from tests.registry_project import fresh_copy, retrain

pytest_plugins = ["tests.registry_fixtures"]


ALL = ["sft", "judge", "ppo", "evaluate"]


def database(root: Path) -> dict[str, int]:
    """Number of rows of every table that publishing could add to."""
    tables = ("runs", "metrics", "params", "tags", "inputs", "model_versions", "model_version_tags", "logged_models")
    with sqlite3.connect(state_dir(root) / "mlflow.db") as connection:
        return {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}


def test_publishing_again_changes_nothing_even_without_the_ledger(published: Path) -> None:
    before = database(published)
    assert publish(published) == PublishReport(published=[], unchanged=ALL, waiting=None)
    (state_dir(published) / "published.json").unlink()
    again = publish(published)
    assert (again.published, again.waiting) == (ALL, None)
    assert database(published) == before


def test_every_version_has_a_run_and_lineage(published: Path) -> None:
    client = connect(published)
    lock_hash = json.loads((state_dir(published) / "published.json").read_text())
    assert len(lock_hash[tracking_uri(published)]) == 4
    ppo = client.get_model_version("policy", "2")
    assert ppo.tags["method"] == "ppo"
    assert ppo.tags["ratchet.parent.sft"].startswith("policy/1 ")
    assert ppo.tags["ratchet.data.data/validated/demonstrations"].endswith(".dir")
    commit = ppo.tags["ratchet.git_commit"]
    assert git(published, "rev-parse", "refs/tags/ratchet/policy/v2") == commit
    assert version_lock(published, commit)["ppo"].outs["data/models/ppo"] == ppo.tags["ratchet.output_md5"]
    record = version_record(published, commit)
    assert record is not None
    assert (record.stage, record.differences) == ("ppo", [])
    assert client.get_model_version("judge", "1").tags["ratchet.stage"] == "judge"
    run = client.get_run(ppo.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == f"ppo-{ppo.tags['ratchet.output_md5'][:8]}"


def test_the_selected_policy_is_the_challenger(published: Path) -> None:
    client = connect(published)
    assert client.get_model_version_by_alias("policy", "challenger").version in (2, "2")


def test_two_stages_with_equal_weights_are_two_versions(
    unpublished: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = fresh_copy(unpublished, tmp_path_factory.mktemp("equal") / "project")
    text = (root / "dvc.lock").read_text()
    hashes = {line for line in text.splitlines() if ".dir" in line and "md5" in line}
    assert hashes
    from tasks.lock_file import read_lock

    lock = read_lock(root)
    sft, ppo = lock["sft"].outs["data/models/sft"], lock["ppo"].outs["data/models/ppo"]
    (root / "dvc.lock").write_text(text.replace(ppo, sft))
    assert publish(root).published == ALL
    client = connect(root)
    found = client.search_model_versions(f"name = 'policy' and tags.`ratchet.output_md5` = '{sft}'")
    assert sorted(entry.tags["ratchet.stage"] for entry in found) == ["ppo", "sft"]


def test_a_new_output_adds_one_version_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, published: Path
) -> None:
    retrain(published, seed=11)
    assert pending(published) == ["ppo", "evaluate"]
    assert publish(published) == PublishReport(published=["ppo", "evaluate"], unchanged=["sft", "judge"], waiting=None)
    client = connect(published)
    assert len(client.search_model_versions("name = 'policy'")) == 3
    assert str(client.get_model_version_by_alias("policy", "challenger").version) == "3"


def test_a_server_that_is_down_delays_publishing(unpublished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    report = publish(unpublished)
    assert time.monotonic() - started < 5
    assert report.published == []
    assert report.waiting is not None
    assert report.waiting.startswith("MLflow at http://127.0.0.1:9 is not reachable: ")
    assert pending(unpublished) == ALL


def test_a_locked_database_delays_publishing_and_the_next_call_catches_up(unpublished: Path) -> None:
    client = connect(unpublished)
    del client
    holder = sqlite3.connect(state_dir(unpublished) / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    report = publish(unpublished)
    assert report.waiting is not None
    assert "locked" in report.waiting
    holder.execute("ROLLBACK")
    holder.close()
    assert publish(unpublished).published == ALL
    assert pending(unpublished) == []


def test_asking_what_is_pending_is_quick_and_imports_no_mlflow(published: Path) -> None:
    code = (
        "import sys, time, pathlib\n"
        "from tasks.publish import pending\n"
        "t = time.perf_counter(); found = pending(pathlib.Path(sys.argv[1]))\n"
        "assert 'mlflow' not in sys.modules or not hasattr(sys.modules['mlflow'], 'MlflowClient')\n"
        "sys.stdout.write(str(found))"
    )
    here = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(published)], cwd=here, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]"


def test_a_deleted_database_is_noticed_and_filled_again(
    tmp_path_factory: pytest.TempPathFactory, unpublished: Path
) -> None:
    assert pending(unpublished) == []
    (state_dir(unpublished) / "mlflow.db").unlink()
    assert pending(unpublished) == ALL
    assert publish(unpublished).published == ALL


def test_a_model_that_is_not_in_this_copy_waits_and_the_others_are_published(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    root = fresh_copy(tmp_path_factory.getbasetemp() / "registry-base", tmp_path / "project")
    locked = {output.stage: output.md5 for output in model_outputs(root, read_lock(root))}
    listing = object_path(dvc_places(root).cache, locked["judge"])
    kept = listing.read_bytes()
    listing.unlink()
    report = publish(root)
    assert set(report.published) >= set(locked) - {"judge"}
    assert "judge" not in report.published + report.unchanged
    assert report.waiting is not None
    assert report.waiting.startswith("judge: the DVC cache has not got the weights; `ratchet run` makes them")
    assert "judge" in pending(root)
    listing.write_bytes(kept)
    assert publish(root).published[:1] == ["judge"]
    assert publish(root).waiting is None
