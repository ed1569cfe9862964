"""One Prefect task per DVC stage: when it may run, what it does, what it leaves in the log."""

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from prefect import State, Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed

from flows.progress import Display
from rlhf.errors import BadInput
from rlhf.launch_line import read_line
from tasks.failures import Failure, StageError
from tasks.graph import Graph, PlannedStage
from tasks.live_record import recorded_live
from tasks.settings import tmp_dir
from tasks.slots import Need, Slots, SlotsCancelled
from tasks.stage import StageResult, run_stage
from tasks.timings import read_timing

RETRIES = 2
RETRY_SECONDS = 2.0
UNKNOWN_SECONDS = 60.0
"""Assumed for a stage that never ran here, when the longest path is looked for."""
MODELS = "data/models/"


class StageRunner:
    """Runs the stages of one flow run and remembers how each ended."""

    def __init__(
        self,
        root: Path,
        graph: Graph,
        planned: Collection[PlannedStage],
        *,
        force: Collection[str],
        display: Display,
        stopping: threading.Event | None = None,
    ) -> None:
        """Prepare.

        Args:
            root: the project's root.
            graph: all stages.
            planned: those of this run, as `tasks.graph.plan` gave them.
            force: stages to execute whatever their state.
            display: whoever watches.
            stopping: set by whoever wants the run to stop.
        """
        self.root, self.graph, self.display = root, graph, display
        self.planned = {stage.name: stage for stage in planned}
        self.results: dict[str, StageResult] = {}
        self.failures: dict[str, Failure] = {}
        self.stopping = stopping or threading.Event()
        self._force = set(force)
        self._slots = Slots(root)
        self._needs = stage_needs(root, graph, gpus=self._slots.gpu)
        self._lock = threading.Lock()

    def request_ready(self) -> None:
        """Queue all stages that could start now, so that the longest path gets slots, not the quickest thread."""
        with self._lock:
            over = set(self.results) | set(self.failures)
            ready = [
                name
                for name, stage in self.planned.items()
                if name not in over and stage.action != "cached" and self._upstream(name) <= set(self.results)
            ]
        self._slots.request({name: self._needs[name] for name in ready})

    def run(self, name: str, log: Callable[[str], None]) -> StageResult:
        """Bring one stage up to date.

        Raises:
            StageError: it did not finish.
        """
        started = time.monotonic()
        try:
            result = self._unchanged(name) or self._execute(name, log)
        except StageError as error:
            self.failures[name] = error.failure
            status = "stopped" if error.failure.kind == "cancelled" else "failed"
            self.display.end(name, status, time.monotonic() - started)
            raise
        with self._lock:
            self.failures.pop(name, None)  # of an attempt before this one
            self.results[name] = result
        self.display.end(name, result.status, result.seconds)
        return result

    def close(self) -> None:
        """Give back slots that were requested for stages that never started."""
        self._slots.close()

    def _unchanged(self, name: str) -> StageResult | None:
        """Answer without starting DVC when nothing before the stage moved either."""
        calm = all(self.results[other].status == "cached" for other in self._upstream(name))
        if self.planned[name].action != "cached" or not calm:
            return None
        return StageResult(name=name, status="cached", seconds=0.0, peak_mb=0.0)

    def _execute(self, name: str, log: Callable[[str], None]) -> StageResult:
        try:
            with ExitStack() as stack:
                lease = stack.enter_context(self._slots.lease(name, self._needs[name], cancelled=self.stopping.is_set))
                self.display.begin(name)
                write = stack.enter_context(_log_file(self.root, name))
                live = stack.enter_context(recorded_live(self.root, name))

                def on_line(line: str) -> None:
                    write(line)
                    log(line)

                result = run_stage(
                    name,
                    root=self.root,
                    force=name in self._force,
                    on_line=on_line,
                    cancelled=self.stopping.is_set,
                    pass_fds=lease.files,
                    extra_env=lease.environment(),
                )
                live.finished = True
                self._settle_before_release(name, result)
            return result
        except SlotsCancelled as error:
            failure = Failure(stage=name, exit_code=1, kind="cancelled", sentence="was stopped before it started")
            raise StageError(failure) from error

    def _settle_before_release(self, name: str, result: StageResult) -> None:
        """Queue what this stage makes ready before its own slots are free for anybody who happens to ask."""
        with self._lock:
            self.results[name] = result
        self.request_ready()

    def _upstream(self, name: str) -> frozenset[str]:
        return self.graph.stages[name].upstream & frozenset(self.planned)


def stage_task(name: str, runner: StageRunner) -> Task[[], Any]:
    """Make the Prefect task of a stage; DVC is the only cache, so Prefect's is off."""

    def retry(_: Any, __: TaskRun, state: State[Any]) -> bool:
        error = state.result(raise_on_failure=False)
        return isinstance(error, StageError) and error.retryable and not runner.stopping.is_set()

    @task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=retry,
    )
    def run() -> Any:
        logger = get_run_logger()
        result = runner.run(name, logger.info)
        if result.status == "run":
            return result
        label = {"cached": "Cached", "restored": "Restored"}[result.status]
        message = {"cached": "nothing changed", "restored": "put back from DVC's cache"}[result.status]
        return Completed(name=label, message=message, data=result)

    return run


def stage_needs(root: Path, graph: Graph, *, gpus: int) -> dict[str, Need]:
    """Say what each stage asks for: its threads, a device per rank for model stages, the longest path first.

    Args:
        root: the project's root.
        graph: all stages.
        gpus: devices of this machine.
    """
    file = root / "params.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    seconds = {name: known.seconds if (known := read_timing(root, name)) else UNKNOWN_SECONDS for name in graph.order}
    ahead: dict[str, float] = {}
    for name in reversed(graph.order):
        after = [ahead[other] for other in graph.order if name in graph.stages[other].upstream]
        ahead[name] = seconds[name] + max(after, default=0.0)
    needs = {}
    for name, stage in graph.stages.items():
        section = params.get(name) if isinstance(params, Mapping) else None
        section = section if isinstance(section, Mapping) else {}
        threads = section.get("threads")
        on_model = any(path.startswith(MODELS) for path in (*stage.deps, *stage.outs))
        ranks = _ranks(section.get("launch", "python"), every=gpus or len(os.sched_getaffinity(0)))
        cpu = threads * ranks if isinstance(threads, int) and threads > 0 else 1
        needs[name] = Need(cpu=cpu, gpu=ranks if gpus and on_model else 0, priority=ahead[name])
    return needs


def _ranks(launch: object, *, every: int) -> int:
    """Read the number of processes on this machine from a launch line; `every` where it asks for all there are."""
    try:
        return read_line(launch, "launch", os.environ).ranks_here or every
    except BadInput:
        return 1  # the stage itself refuses the line, with its place


@contextmanager
def _log_file(root: Path, name: str) -> Iterator[Callable[[str], object]]:
    """Keep everything the stage says in .ratchet/tmp/logs/STAGE.log, of its last attempt."""
    path = tmp_dir(root) / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", buffering=1) as stream:
        yield lambda line: stream.write(f"{line}\n")
