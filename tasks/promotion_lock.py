"""One at a time: the lock around "compare with the champion, then set it", over everybody who shares the registry.

A registry of this machine is guarded by a file lock. Where several machines share one, only something that all of
them see can do it, which is a limit of their shared Prefect server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from tasks.mlflow_store import exclusive, sqlite_file
from tasks.registry_config import RegistryConfig
from tasks.settings import applied_environment, state_dir, tracking_uri

OWN_SERVER = "RATCHET_OWN_PREFECT"
"""Set where PREFECT_API_URL is the server that `ratchet run` brought along: nobody else sees that one."""
TAG = "ratchet.lock"
"""Tag of the registered model: how its moves are guarded. Two ways at once would guard nothing."""
LEASE_SECONDS = 60.0
"""The shortest lease that Prefect gives; renewed while we live, so a killed holder blocks others no longer."""
WAIT_SECONDS = 180.0
PROBE_SECONDS = 3.0


class NoLock(Exception):
    """The champion cannot be moved safely now; the message is the sentence to show."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """What guards the moves of one registry."""

    kind: Literal["file", "prefect"]
    file: Path
    """The lock file; of this project only, where `kind` is prefect."""
    label: str
    """What the tag says; "" for a database file, whose lock lies with it."""
    limit: str = ""
    """Name of the limit in Prefect."""


def guard_of(root: Path, config: RegistryConfig) -> Guard:
    """Choose the guard, as `lock` in mlflow/registry.yaml says.

    Args:
        root: the project's root.
        config: the registry's names.

    Returns:
        With `auto`, a file lock for a database file or a server on this machine, else a limit of the shared Prefect.

    Raises:
        NoLock: a shared guard is needed, and there is none.
    """
    uri = tracking_uri(root)
    database = sqlite_file(uri)
    own = state_dir(root) / "registry.lock"
    if config.lock == "prefect" or (config.lock == "auto" and database is None and not _loopback(uri)):
        if not os.environ.get("PREFECT_API_URL") or os.environ.get(OWN_SERVER):
            raise NoLock(
                f"the registry at {_host(uri)} is shared, and nothing that all its users see guards the champion: set "
                "PREFECT_API_URL to the Prefect server that they share, or `lock: file` in mlflow/registry.yaml if "
                "nobody promotes but from this folder"
            )
        limit = f"ratchet-promote-{re.sub(r'[^A-Za-z0-9_.-]', '-', config.policy)}"
        return Guard(kind="prefect", file=own, label=f"prefect {limit}", limit=limit)
    if database is not None:
        inside = database.resolve().is_relative_to(state_dir(root).resolve())
        return Guard(kind="file", file=own if inside else database.with_name(f"{database.name}.lock"), label="")
    place = hashlib.sha256(f"{socket.gethostname()}:{root.resolve()}".encode()).hexdigest()[:12]
    return Guard(kind="file", file=own, label=f"file {place}")


def require_same(recorded: str | None, guard: Guard, model: str) -> None:
    """Refuse to move under another guard than others do.

    Args:
        recorded: the tag of the registered model, None before its first move.
        guard: ours.
        model: registered name.

    Raises:
        NoLock: they differ, so two could move at once.
    """
    if recorded in (None, guard.label) or (not guard.label and not str(recorded).startswith("prefect")):
        return
    raise NoLock(
        f"{model}: its moves are guarded by {str(recorded)!r}, and this project would use {guard.label or 'file'!r} "
        "(another folder or machine, or another `lock` in mlflow/registry.yaml), which would not exclude each other; "
        f"use the same one (`lock: prefect` where several folders promote), and if this is the only one left delete "
        f"the tag {TAG} of the registered model"
    )


@contextmanager
def held(guard: Guard, root: Path) -> Iterator[None]:
    """Hold the guard, waiting for it.

    Raises:
        NoLock: the Prefect server is away, its limit is not 1, or another promotion takes minutes.
    """
    with exclusive(guard.file), ExitStack() as stack:
        if guard.kind == "prefect":
            _probe()
            if "prefect" not in sys.modules:  # it reads its settings when it is imported
                stack.enter_context(applied_environment(root))
                stack.callback(_send_events)
            stack.enter_context(_limit_held(guard.limit))
        yield


def _send_events() -> None:
    """Have Prefect send its events about the limit; that this takes a moment is nothing to warn a person of."""
    from prefect.events.worker import EventsWorker

    logging.getLogger(EventsWorker.__name__).setLevel(logging.ERROR)
    EventsWorker.drain_all(timeout=PROBE_SECONDS, at_exit=False)


@contextmanager
def _limit_held(name: str) -> Iterator[None]:
    """Hold the one slot of a limit of the Prefect server, which is made when absent."""
    import httpx
    from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
    from prefect.concurrency.sync import concurrency

    with ExitStack() as stack:
        try:
            _require_limit(name)
            # Entered by hand: what goes wrong while it is held is not a failure to get it.
            stack.enter_context(
                concurrency(name, occupy=1, timeout_seconds=WAIT_SECONDS, lease_duration=LEASE_SECONDS, strict=True)
            )
        except TimeoutError as error:
            raise NoLock(
                f"another promotion has held the limit {name} of the Prefect server for {WAIT_SECONDS:.0f} s; "
                "look at it in Prefect's page (Concurrency), and try again"
            ) from error
        except (ConcurrencySlotAcquisitionError, httpx.HTTPError) as error:
            raise NoLock(f"the limit {name} of the Prefect server cannot be had: {error}; try again") from error
        yield


def _require_limit(name: str) -> None:
    """Make the limit where it is absent; two who do so at once end with one.

    Raises:
        NoLock: somebody has given it another size, with which it excludes nobody.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound, PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        try:
            found = client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            wanted = GlobalConcurrencyLimitCreate(name=name, limit=1, active=True)
            with suppress(ObjectAlreadyExists, PrefectHTTPStatusError):  # somebody was quicker; read what they made
                client.create_global_concurrency_limit(wanted)
            found = client.read_global_concurrency_limit_by_name(name)
    if found.limit != 1 or not found.active or found.slot_decay_per_second:
        raise NoLock(
            f"the limit {name} of the Prefect server has {found.limit} slot(s), active: {found.active}, decay: "
            f"{found.slot_decay_per_second:g}; wanted 1, true and 0: mend it in Prefect's page (Concurrency)"
        )


def _probe() -> None:
    """Find out in seconds what Prefect's client would take a minute to find."""
    url = os.environ["PREFECT_API_URL"]
    parts = urlparse(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "localhost", port), PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise NoLock(
            f"PREFECT_API_URL={_host(url)}: no Prefect server answers there ({error}), and it guards the champion; "
            "start it and try again"
        ) from error


def _host(uri: str) -> str:
    """Return an address without user and password."""
    parts = urlparse(uri)
    return uri.replace(f"{parts.username or ''}:{parts.password}@", "") if parts.password else uri


def _loopback(uri: str) -> bool:
    host = urlparse(uri).hostname
    return host is None or host in ("localhost", "::1") or host.startswith("127.")
