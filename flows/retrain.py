"""The flow `retrain`: every stage of the DVC graph as a task, then publishing, the gate, and a summary as an artifact.

The list of stages and their order are DVC's; here is only when, where, how often, and what happens after.
"""

import logging
import signal
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture, wait
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.progress import Display, LogDisplay
from flows.stage_tasks import StageRunner, stage_task
from tasks.failures import Failure, StageError
from tasks.graph import Graph, plan_with_graph
from tasks.lock_file import read_lock
from tasks.settings import project_root, tmp_dir
from tasks.snapshot import snapshot
from tasks.stage import StageResult

if TYPE_CHECKING:
    from tasks.gate import Decision
    from tasks.publish import PublishReport

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
ARTIFACT = "retrain"
FLUSH_SECONDS = 10.0


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What a run did; filled in as it goes, so that it tells the truth about a run that broke off, too."""

    graph: Graph | None = None
    order: tuple[str, ...] = ()
    results: dict[str, StageResult] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    commit: str | None = None
    """The snapshot of the tree that the run was made from."""
    published: "PublishReport | None" = None
    publish_error: str | None = None
    decision: "Decision | None" = None
    champion: str | None = None
    """The policy that is champion after the gate, as one names it to a command."""
    gate_error: str | None = None
    stopped_by: int | None = None
    """The signal that stopped the run."""
    run_id: str = ""

    @property
    def exit_code(self) -> int:
        """0 done; 1 a stage failed, could not be published for no foreseen reason, or the gate said no; 2 bad input."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        if self.failures:
            return max(2 if failure.kind == "bad_input" else 1 for failure in self.failures.values())
        verdict = self.decision.verdict if self.decision else None
        refused = verdict is not None and not verdict.promote and bool(verdict.reasons)
        return 1 if self.publish_error or self.gate_error or refused else 0


_watcher: tuple[Display, Outcome] | None = None
"""Who watches the run of this process; a flow run started by a Prefect worker has nobody, and logs lines."""


def execute(root: Path, *, until: str | None, force: Sequence[str], promote: bool, display: Display) -> Outcome:
    """Run the flow in this process and return what it did, also when it failed.

    Args:
        root: the project's root.
        until: only this stage and what it needs.
        force: stages to execute whatever their state.
        promote: whether the gate may move the champion.
        display: whoever watches.
    """
    global _watcher
    outcome = Outcome()
    _watcher = (display, outcome)
    # Prefect reads its settings when it is imported; a process that runs twice has another server the second time.
    refresh_global_settings_context()
    quiet_prefect(root)
    try:
        state: State[Any] = retrain(  # type: ignore[assignment]  # not awaited: the flow is a plain function
            str(root), until=until, force=list(force), promote=promote, return_state=True
        )
        if state.is_failed() and not outcome.failures and not outcome.exit_code:
            state.result()  # raises what went wrong outside the stages
    finally:
        _watcher = None
        # What is still queued has to leave before the server does.
        APILogWorker.drain_all(timeout=FLUSH_SECONDS, at_exit=False)
        EventsWorker.drain_all(timeout=FLUSH_SECONDS, at_exit=False)
    return outcome


def run_name() -> str:
    """Name a flow run by its start, and by where it is to end when that is not the end of the graph."""
    until = flow_run.get_parameters().get("until")
    return f"retrain {datetime.now():%Y-%m-%d %H:%M}" + (f" until {until}" if until else "")


@flow(name="retrain", flow_run_name=run_name, validate_parameters=False, persist_result=False)
def retrain(root: str | None = None, until: str | None = None, force: Sequence[str] = (), promote: bool = True) -> Any:
    """Bring every stage up to date, publish what is new, and let the gate decide about the champion.

    Args:
        root: the project's root, found if None.
        until: only this stage and what it needs; no gate then.
        force: stages to execute whatever their state.
        promote: whether the gate may move the champion.

    Raises:
        StageError: a stage failed; the others that do not need it were finished.
    """
    folder = Path(root) if root else project_root()
    display, outcome = _watcher or (LogDisplay(folder), Outcome())
    outcome.run_id = str(flow_run.get_id() or uuid.uuid4())
    outcome.commit = snapshot(folder, outcome.run_id)
    graph, planned = plan_with_graph(folder, until=until, force=force)
    outcome.graph, outcome.order = graph, tuple(stage.name for stage in planned)
    runner = StageRunner(folder, graph, planned, force=force, display=display)
    outcome.results, outcome.failures = runner.results, runner.failures
    with stopped_by_signals(runner.stopping) as received:
        try:
            run_stages(runner)
        finally:
            runner.close()
        outcome.stopped_by = received[0] if received else None
    if outcome.stopped_by is not None:
        return Cancelled(message="stopped; the next run resumes from the checkpoints")
    if not runner.failures:
        finish(folder, outcome, gate=until is None, promote=promote)
    create_markdown_artifact(key=ARTIFACT, markdown=markdown(folder, outcome), description="what this run did")
    if runner.failures:
        raise StageError(next(iter(runner.failures.values())))
    return None


def run_stages(runner: StageRunner) -> None:
    """Submit every stage at once, each waiting for those it needs, and return when all are over."""
    runner.request_ready()
    futures: dict[str, PrefectFuture[Any]] = {}
    for name in runner.planned:
        upstream = [futures[other] for other in runner.graph.stages[name].upstream if other in futures]
        futures[name] = stage_task(name, runner).submit(return_state=False, wait_for=upstream)
    wait(list(futures.values()))


def finish(root: Path, outcome: Outcome, *, gate: bool, promote: bool) -> None:
    """Publish and judge; neither may undo a training that succeeded, so what goes wrong is kept in the outcome."""
    from tasks.publish_ledger import pending
    from tasks.stage_outputs import model_outputs

    if pending(root):
        # A version must not point at weights that nobody else can have: first the remote, then the registry.
        pushed = push(root, return_state=True)
        if not pushed.is_completed():
            outcome.publish_error = _message(pushed.result(raise_on_failure=False))
            return
        state = publish_models(root, outcome.commit, return_state=True)
        if state.is_completed():
            outcome.published = state.result()
        else:
            outcome.publish_error = _message(state.result(raise_on_failure=False))
    reachable = outcome.published is None or outcome.published.waiting is None
    if gate and reachable and not outcome.publish_error and model_outputs(root, read_lock(root)):
        judged = judge(root, promote, return_state=True)
        if judged.is_completed():
            outcome.decision, outcome.champion = judged.result()
        else:
            outcome.gate_error = _message(judged.result(raise_on_failure=False))


@task(name="push", task_run_name="push", cache_policy=NO_CACHE, persist_result=False)
def push(root: Path) -> str | None:
    """Bring outputs to the DVC remote, where there is one."""
    from tasks.remote import push_outputs

    return push_outputs(root, on_line=get_run_logger().info)


@task(name="publish", task_run_name="publish", cache_policy=NO_CACHE, persist_result=False)
def publish_models(root: Path, commit: str | None) -> "PublishReport":
    """Make MLflow agree with dvc.lock; MLflow being down is told, not raised."""
    from tasks.publish import publish

    report = publish(root, commit=commit)
    if report.waiting:
        get_run_logger().warning("not published yet: %s", report.waiting)
    return report


@task(name="gate", task_run_name="gate", cache_policy=NO_CACHE, persist_result=False)
def judge(root: Path, promote: bool) -> "tuple[Decision, str | None]":
    """Compare the challenger with the champion, move the alias when it earns it, and name the champion."""
    from tasks.gate import Decision, decide_and_promote, judge_challenger
    from tasks.registry import challenger, champion

    if promote:
        decision = decide_and_promote(root)
    elif challenger(root) is None:
        decision = Decision(verdict=None, move=None, sentence="nothing is @challenger")
    else:
        verdict = judge_challenger(root)
        sentence = f"{'would be promoted' if verdict.promote else 'would stay challenger'}: {verdict.sentence}"
        decision = Decision(verdict=verdict, move=None, sentence=sentence)
    get_run_logger().info(decision.sentence)
    holder = champion(root)
    return decision, holder.reference if holder else None


@contextmanager
def stopped_by_signals(stopping: threading.Event) -> Iterator[list[int]]:
    """Turn Ctrl-C and SIGTERM into `stopping`; the stages then end their processes, and the flow its tasks.

    Yields:
        The signals received. Outside the main thread, where Python allows no handlers, it stays empty.
    """
    received: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        received.append(number)
        stopping.set()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def quiet_prefect(root: Path) -> None:
    """Keep what Prefect logs off the terminal: the display tells it better, a file keeps its warnings."""
    import prefect.main  # noqa: F401 - it configures logging when first imported, which must not come after us

    logger = logging.getLogger("prefect")
    logger.propagate = False
    path = tmp_dir(root) / "logs" / "prefect.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]:
        logger.removeHandler(old)
        old.close()
    handler = logging.FileHandler(path, delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)


def markdown(root: Path, outcome: Outcome) -> str:
    """Write the artifact: stages, win rates, samples."""
    from flows.summary import as_markdown, collect

    return as_markdown(collect(root, outcome), root)


def _message(error: object) -> str:
    return str(getattr(error, "sentence", None) or error) or type(error).__name__
