"""Do racing promotions lose anything? Processes promote against a real MLflow server, each against the champion it saw.

    python -m bench.promotion_race [--processes 8] [--promotions 125] [--guard file|prefect]

Each promotion reads the champion, chooses another version, and promotes it with evidence about the champion that it
read. Afterwards: every promotion that was accepted saw the right predecessor, all of them and nothing else are in the
history, the history is one chain, and its end is where the alias points. With `--guard prefect` half of the processes
work in another copy of the project, as on another machine, and a real Prefect server guards the champion. Exit code 0:
all of that holds.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.server import LocalServer, free_port
from rlhf.errors import BadInput
from tasks.history import Move
from tasks.registry import ChampionMoved, champion, history, promote

REPOSITORY = Path(__file__).resolve().parents[1]
VERSIONS = ("1", "2", "3", "4")
START_SECONDS = 120.0


def main() -> int:
    """Race, check, and print the figures as JSON; see the module's text for the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8, help="default %(default)s")
    parser.add_argument("--promotions", type=int, default=125, help="of each process; default %(default)s")
    parser.add_argument("--guard", choices=("file", "prefect"), default="file", help="default %(default)s")
    parser.add_argument("--worker", nargs=2, metavar=("ROOT", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        root, seed = asked.worker
        sys.stdout.write(json.dumps(compete(Path(root), int(seed), asked.promotions)))
        return 0
    with tempfile.TemporaryDirectory(prefix="promotion-race-", dir=_scratch()) as folder:
        found = race(Path(folder), processes=asked.processes, promotions=asked.promotions, guard=asked.guard)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 1 if found["wrong"] else 0


def race(folder: Path, *, processes: int, promotions: int, guard: str = "file") -> dict[str, Any]:
    """Let processes promote at once.

    Args:
        folder: an empty one, for projects, stores and logs.
        processes: how many.
        promotions: of each.
        guard: "file" for one project, "prefect" for two copies of it.

    Returns:
        Counts, seconds, and under `wrong` a sentence for everything that should not be.
    """
    roots = [make_project(folder / "one", guard)]
    if guard == "prefect":
        roots.append(shutil.copytree(roots[0], folder / "two", symlinks=True))
    with contextlib.ExitStack() as stack:
        env = {"MLFLOW_TRACKING_URI": stack.enter_context(mlflow_server(folder / "server"))}
        if guard == "prefect":
            server = stack.enter_context(LocalServer(roots[0]))
            server.wait()
            env["PREFECT_API_URL"] = server.api_url
        stack.enter_context(_variables(env))
        register_versions(roots[0], env["MLFLOW_TRACKING_URI"])
        began = time.monotonic()
        reports = _run_all(roots, processes, promotions)
        seconds = time.monotonic() - began
        moves, holder = history(roots[0]), champion(roots[0])
    accepted = [move for report in reports for move in report["accepted"]]
    return {
        "processes": processes,
        "promotions": processes * promotions,
        "guard": guard,
        "accepted": len(accepted),
        "refused": sum(report["refused"] for report in reports),
        "seconds": round(seconds, 1),
        "wrong": wrong(accepted, moves, holder.version if holder else None)
        + [line for report in reports for line in report["failed"]],
    }


def wrong(accepted: Sequence[Mapping[str, Any]], moves: Sequence[Move], holder: str | None) -> list[str]:
    """Compare what the processes were told with the history.

    Args:
        accepted: `id`, `before`, `after` and `seen` of every move that a process was told to have made.
        moves: the history.
        holder: the champion in the end.
    """
    said, recorded = {move["id"] for move in accepted}, {move.id for move in moves}
    found = [f"{move['id']}: made after {move['before']}, but had seen {move['seen']}" for move in accepted
             if move["before"] != move["seen"]]  # fmt: skip
    found += [f"{name}: accepted, and not in the history" for name in sorted(said - recorded)]
    found += [f"{name!r}: in the history, and accepted by nobody" for name in sorted(recorded - said)]
    if [move.number for move in moves] != list(range(1, len(moves) + 1)):
        found.append("the history's numbers are not 1, 2, 3, ...")
    ends = [None, *(move.after for move in moves)]
    found += [f"move {move.number} begins at {move.before}, and the one before ended at {end}"
              for move, end in zip(moves, ends, strict=False) if move.before != end]  # fmt: skip
    if holder != ends[-1]:
        found.append(f"the alias points at {holder}, and the history ends at {ends[-1]}")
    return found


def compete(root: Path, seed: int, promotions: int) -> dict[str, Any]:
    """Promote again and again, as one process of the race."""
    drawn = random.Random(seed)
    accepted: list[dict[str, Any]] = []
    failed: list[str] = []
    for number in range(promotions):
        held = champion(root)
        seen = held.version if held else None
        wanted = drawn.choice([version for version in VERSIONS if version != seen])
        try:
            evidence = {"promote": True, "champion": seen}
            move = promote(root, wanted, reason=f"process {seed}, promotion {number}", evidence=evidence)
            accepted.append({"id": move.id, "before": move.before, "after": move.after, "seen": seen})
        except ChampionMoved:
            pass
        except BadInput as error:
            if "is the champion already" not in str(error):
                failed.append(str(error))
    return {"accepted": accepted, "refused": promotions - len(accepted) - len(failed), "failed": failed}


def make_project(root: Path, guard: str) -> Path:
    """Write a project whose DVC cache holds the weights of all versions."""
    (root / "mlflow").mkdir(parents=True)
    text = (REPOSITORY / "mlflow/registry.yaml").read_text(encoding="utf-8")
    (root / "mlflow/registry.yaml").write_text(text.replace("lock: auto", f"lock: {guard}"), encoding="utf-8")
    (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    _dvc(root, "init", "--no-scm", "-q")
    for number in VERSIONS:
        weights = root / "data/models" / f"ppo-{number}"
        weights.mkdir(parents=True)
        (weights / "config.json").write_text(json.dumps({"version": number}), encoding="utf-8")
    _dvc(root, "add", "-q", *(f"data/models/ppo-{number}" for number in VERSIONS))
    return root


def register_versions(root: Path, uri: str) -> None:
    """Register the weights, as `ratchet publish` tags them."""
    from mlflow import MlflowClient

    from rlhf.config import parse

    client = MlflowClient(uri)
    client.create_registered_model("policy")
    for number in VERSIONS:
        pointer = root / f"data/models/ppo-{number}.dvc"
        md5 = parse(pointer.read_text(encoding="utf-8"), file=pointer.name)["outs"][0]["md5"]
        tags = {"ratchet.stage": "ppo", "ratchet.output_md5": md5}
        client.create_model_version("policy", f"dvc://cache/{md5}", tags=tags, await_creation_for=0)


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run a tracking server on a SQLite store of its own; yields its address."""
    folder.mkdir(parents=True)
    port = free_port()
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "kept")]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *stores]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    supervised = [sys.executable, "-I", "-S", str(REPOSITORY / "tasks/supervisor.py"), str(os.getpid()), "5.0"]
    with (folder / "server.log").open("wb") as log, subprocess.Popen(
        [*supervised, sys.executable, "-P", "-m", "mlflow", *words], cwd=folder, env=env, stdout=log, stderr=log
    ) as server:  # fmt: skip
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the MLflow server does not answer; see {folder / 'server.log'}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
        return True
    return False


def _run_all(roots: Sequence[Path], processes: int, promotions: int) -> list[dict[str, Any]]:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.promotion_race", "--worker", str(roots[number % len(roots)]), str(number),
             "--promotions", str(promotions)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip
    reports = []
    for process in running:
        out, said = process.communicate()
        failed = [f"a process ended with {process.returncode}: {said[-500:]}"] if process.returncode else []
        reports.append({"accepted": [], "refused": 0, "failed": failed} if failed else json.loads(out))
    return reports


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _dvc(root: Path, *words: str) -> None:
    env = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / ".dvc/site")}
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, env=env, check=True)


def _scratch() -> Path:
    folder = REPOSITORY / ".ratchet/tmp/bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
