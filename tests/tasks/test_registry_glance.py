import sqlite3
from pathlib import Path

import pytest

from tasks.mlflow_store import connect
from tasks.registry import challenger
from tasks.registry_glance import Glance, glance

pytest_plugins = ["tests.registry_fixtures"]


def test_a_glance_sees_what_mlflow_says(published: Path) -> None:
    file = published / ".ratchet" / "state" / "mlflow.db"
    asked = challenger(published)
    assert asked is not None
    assert glance(file, "policy", "challenger") == Glance(asked.reference, asked.stage, asked.output_md5, "")
    assert glance(file, "policy", "nobody") is None
    assert glance(file, "nothing", "challenger") is None
    client = connect(published)
    client.set_registered_model_alias("policy", "champion", "1")
    client.set_model_version_tag("policy", "1", "ratchet.decision", "promoted")
    found = glance(file, "policy", "champion")
    assert found is not None
    assert (found.reference, found.stage, found.decision) == ("policy/1", "sft", "promoted")


def test_another_database_is_an_error_and_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as database:
        database.execute("create table something (name text)")
    before = file.read_bytes()
    with pytest.raises(sqlite3.Error):
        glance(file, "policy", "champion")
    assert file.read_bytes() == before
    with pytest.raises(sqlite3.Error):
        glance(tmp_path / "missing.db", "policy", "champion")
    assert not (tmp_path / "missing.db").exists()
