from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flows.server import LocalServer, free_port
from tasks.promotion_lock import Guard, NoLock, guard_of, held, require_same
from tasks.registry import promote
from tasks.registry_config import RegistryConfig, load_registry_config

SHARED = "https://someone:planted@registry.example.org/mlflow"


@pytest.fixture
def root(tmp_path: Path, project: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/registry.yaml").write_text((project / "mlflow/registry.yaml").read_text())
    return tmp_path


@pytest.fixture
def config(root: Path) -> RegistryConfig:
    return load_registry_config(root)


def test_a_registry_of_this_machine_is_guarded_by_a_file(
    root: Path, config: RegistryConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = guard_of(root, config)
    assert (own.kind, own.file, own.label) == ("file", root / ".ratchet/state/registry.lock", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root.parent}/other/mlflow.db")
    assert guard_of(root, config).file == root.parent / "other/mlflow.db.lock"  # all that use it lock the same file
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    here = guard_of(root, config)
    assert (here.kind, here.file) == ("file", own.file)
    assert here.label.startswith("file ")
    assert guard_of(root.parent, config).label != here.label  # another folder has another lock file


def test_a_shared_registry_needs_a_guard_that_all_see(
    root: Path, config: RegistryConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SHARED)
    with pytest.raises(NoLock, match="is shared, and nothing that all its users see guards the champion") as caught:
        promote(root, 1, reason="x")  # before anybody is asked
    assert "planted" not in str(caught.value)
    assert guard_of(root, replace(config, lock="file")).kind == "file"
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example.org/api")
    guard = guard_of(root, replace(config, prefix="team a-"))
    assert (guard.kind, guard.limit) == ("prefect", "ratchet-promote-team-a-policy")
    monkeypatch.setenv("RATCHET_OWN_PREFECT", "1")  # the server that `ratchet run` brought along
    with pytest.raises(NoLock, match="PREFECT_API_URL"):
        guard_of(root, config)


def test_two_ways_at_once_are_refused() -> None:
    file, other = Guard(kind="file", file=Path("a"), label="file 1"), Guard(kind="file", file=Path("a"), label="")
    require_same(None, file, "policy")
    require_same("file 1", file, "policy")
    require_same("file 1", other, "policy")  # the database of that server, on its own machine
    for recorded, guard in (("file 2", file), ("prefect x", file), ("prefect x", other)):
        with pytest.raises(NoLock, match="would not exclude each other"):
            require_same(recorded, guard, "policy")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = tmp_path_factory.mktemp("server")
    (root / "dvc.yaml").write_text("stages: {}\n")
    with LocalServer(root) as server:
        server.wait()
        yield server


def test_the_limit_of_a_prefect_server_excludes(
    root: Path, config: RegistryConfig, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.context import refresh_global_settings_context

    monkeypatch.setenv("MLFLOW_TRACKING_URI", SHARED)
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    guard = guard_of(root, config)
    with pytest.raises(NoLock, match="no Prefect server answers there"), held(guard, root):
        pass
    monkeypatch.setenv("PREFECT_API_URL", server.api_url)
    refresh_global_settings_context()
    monkeypatch.setattr("tasks.promotion_lock.WAIT_SECONDS", 1.0)
    # Another machine has another lock file, so only the limit is between them.
    elsewhere = replace(guard, file=root / "elsewhere.lock")
    with (
        held(guard, root),
        pytest.raises(NoLock, match="another promotion has held the limit ratchet-promote-policy"),
        held(elsewhere, root),
    ):
        pass
    with held(elsewhere, root):  # it was given back
        pass
    with get_client(sync_client=True) as client:
        client.update_global_concurrency_limit(guard.limit, GlobalConcurrencyLimitUpdate(limit=2))
    with pytest.raises(NoLock, match="has 2 slot"), held(guard, root):
        pass
    monkeypatch.undo()
    refresh_global_settings_context()
