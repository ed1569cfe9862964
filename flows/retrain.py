"""The flow `retrain`: every stage of the DVC graph as a task, then publishing, the gate, and a summary as an artifact.

The list of stages and their order are DVC's; here is only when, where, how often, and what happens after.
"""

import logging
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from prefect import State, flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.exceptions import Abort
from prefect.futures import PrefectFuture, wait
from prefect.logging.handlers import APILogWorker
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import flow_runs
from flows.outcome import Outcome
from flows.progress import Display, LogDisplay
from flows.stage_tasks import StageRunner, stage_task
from flows.stopping import Stop
from flows.watched_run import watched
from rlhf.errors import StageFailed
from tasks.cache_mend import mend
from tasks.failures import StageError
from tasks.graph import plan_with_graph
from tasks.lock_file import read_lock
from tasks.lock_mend import plan_mended
from tasks.settings import project_root, tmp_dir
from tasks.snapshot import snapshot

if TYPE_CHECKING:
    from tasks.gate import Decision
    from tasks.publish import PublishReport

ARTIFACT = "retrain"
FLUSH_SECONDS = 10.0


_watcher: tuple[Display, Outcome] | None = None
"""Who watches the run of this process; a flow run started by a Prefect worker has nobody, and logs lines."""


def execute(
    root: Path, *, until: str | None, force: Sequence[str], promote: bool, display: Display, local_server: bool = False
) -> Outcome:
    """Run the flow in this process and return what it did, also when it failed.

    Args:
        root: the project's root.
        until: only this stage and what it needs.
        force: stages to execute whatever their state.
        promote: whether the gate may move the champion.
        display: whoever watches.
        local_server: whether PREFECT_API_URL is our own server.

    Raises:
        StageFailed: the Prefect server went away before the stages were done.
    """
    global _watcher
    outcome = Outcome(local_server=local_server)
    _watcher = (display, outcome)
    # Prefect reads its settings when it is imported; a process that runs twice has another server the second time.
    refresh_global_settings_context()
    quiet_prefect(root)
    patience = FLUSH_SECONDS
    try:
        state: State[Any] = retrain(  # type: ignore[assignment]  # not awaited: the flow is a plain function
            str(root), until=until, force=list(force), promote=promote, return_state=True
        )
        if state.is_failed() and not outcome.failures and not outcome.exit_code:
            state.result()  # raises what went wrong outside the stages
    except (httpx.HTTPError, Abort) as error:
        patience = 1.0
        if not outcome.over:
            raise StageFailed(_lost_server(outcome, error)) from error
        display.note(f"the Prefect server is away ({_message(error)}): the run is done, its record there is not")
    finally:
        _watcher = None
        # What is still queued has to leave before the server does.
        APILogWorker.drain_all(timeout=patience, at_exit=False)
        EventsWorker.drain_all(timeout=patience, at_exit=False)
        if outcome.run_id:
            flow_runs.forget_if_over(root, outcome.run_id)
    return outcome


def _lost_server(outcome: Outcome, error: BaseException) -> str:
    kept = ", ".join(outcome.results) or "none yet"
    return (
        f"the Prefect server went away in the middle of the run ({_message(error)}); finished stages are kept "
        f"({kept}); start the server, or unset PREFECT_API_URL, and run again"
    )


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
    with watched(folder, outcome.run_id, local=outcome.local_server, say=display.note) as stop:
        try:
            _bring_up_to_date(folder, outcome, stop, display, until=until, force=force, promote=promote)
        finally:
            outcome.cancelled = stop.cancelled
            outcome.stopped_by = stop.signals[0] if stop.signals else None
            outcome.over = True
    if outcome.cancelled or outcome.stopped_by is not None:
        return Cancelled(message="stopped; the next run resumes from the checkpoints")
    if outcome.failures:
        raise StageError(next(iter(outcome.failures.values())))
    return None


def _bring_up_to_date(
    root: Path,
    outcome: Outcome,
    stop: Stop,
    display: Display,
    *,
    until: str | None,
    force: Sequence[str],
    promote: bool,
) -> None:
    outcome.commit = snapshot(root, outcome.run_id)
    graph, planned = plan_mended(root, until=until, force=force, say=display.note)
    if mended := mend(root, planned, on_line=get_run_logger().info, cancelled=stop.event.is_set):
        for sentence in mended:
            display.note(sentence)
        graph, planned = plan_with_graph(root, until=until, force=force)
    outcome.graph, outcome.order = graph, tuple(stage.name for stage in planned)
    runner = StageRunner(root, graph, planned, force=force, display=display, stopping=stop.event)
    outcome.results, outcome.failures = runner.results, runner.failures
    try:
        run_stages(runner)
    finally:
        runner.close()
    if stop.event.is_set():
        return
    try:
        with stop.interrupts():
            if not runner.failures:
                finish(root, outcome, gate=until is None, promote=promote)
            if not stop.server_away:
                _leave_artifact(root, outcome)
    except KeyboardInterrupt:  # what was being published is finished by the next run
        if not stop.event.is_set():
            raise


def _leave_artifact(root: Path, outcome: Outcome) -> None:
    try:
        create_markdown_artifact(key=ARTIFACT, markdown=markdown(root, outcome), description="what this run did")
    except httpx.HTTPError as error:  # the run is none the worse for it
        get_run_logger().warning("no artifact: %s", error)


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


def quiet_prefect(root: Path) -> None:
    """Keep what Prefect logs off the terminal: the display tells it better, a file keeps its warnings."""
    import prefect.main  # noqa: F401 - it configures logging when first imported, which must not come after us

    logging.raiseExceptions = False  # else every line that its server does not take is told on stderr
    logger = logging.getLogger("prefect")
    logger.propagate = False
    internal = logging.getLogger("prefect._internal")
    internal.propagate = True
    internal.handlers.clear()
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
