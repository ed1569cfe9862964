import json
from pathlib import Path

import pytest

from tasks.publish_ledger import Ledger
from tasks.settings import state_dir


def test_entries_belong_to_one_tracking_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one")
    Ledger(tmp_path).add("ppo:a", "run1")
    assert Ledger(tmp_path).missing(["ppo:a", "dpo:a"]) == ["dpo:a"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://two")
    assert Ledger(tmp_path).missing(["ppo:a"]) == ["ppo:a"]
    assert set(json.loads((state_dir(tmp_path) / "published.json").read_text())) == {"http://one"}


def test_a_local_database_that_is_gone_or_empty_voids_its_entries(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add("ppo:a", "run1")
    assert ledger.missing(["ppo:a"]) == ["ppo:a"]
    (state_dir(tmp_path) / "mlflow.db").touch()
    assert ledger.missing(["ppo:a"]) == ["ppo:a"]


def test_a_broken_ledger_counts_as_empty(tmp_path: Path) -> None:
    (state_dir(tmp_path) / "published.json").write_text("{half")
    assert Ledger(tmp_path).missing(["ppo:a"]) == ["ppo:a"]
