"""What a person sees while stages run: one live display on a terminal, a line every few seconds in a log.

Everything here goes to stderr; stdout belongs to the result.
"""

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from flows.output import duration, note
from tasks.live import Row, latest
from tasks.timings import read_timing

if TYPE_CHECKING:
    from rich.progress import TaskID

REFRESH_SECONDS = 0.5
LOG_SECONDS = 5.0
SHOWN_METRICS = 3
TELLING = ("reward", "kl", "accuracy", "loss", "entropy", "end_rate", "gold")
"""Live metrics worth one of the few places, best first; others follow in the order of the row."""
NOT_METRICS = frozenset({"step", "time", "total"})


class Display(Protocol):
    """What the flow tells whoever watches."""

    def begin(self, stage: str) -> None:
        """A stage has started to run."""

    def end(self, stage: str, status: str, seconds: float) -> None:
        """A stage is over: run, restored, cached, failed or stopped."""

    def note(self, text: str) -> None:
        """Something else worth a line."""


@dataclass(slots=True)
class _Running:
    began: float = field(default_factory=time.time)
    first: Row | None = None
    """The first row of this attempt: the pace is measured from it, since a resumed stage does not begin at step 0."""


class _Watch:
    """Knows which stages run and how far each is; a thread of its own looks at their live rows."""

    def __init__(self, root: Path, every: float) -> None:
        self._root, self._every = root, every
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def begin(self, stage: str) -> None:
        """See `Display`."""
        with self._lock:
            self._running[stage] = _Running()

    def end(self, stage: str, status: str, seconds: float) -> None:
        """See `Display`."""
        with self._lock:
            self._running.pop(stage, None)

    def show(self, standing: "Mapping[str, Standing]") -> None:
        """Show how far the running stages are."""

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            with self._lock:
                running = dict(self._running)
            if running:
                self.show({stage: self._standing(stage, entry) for stage, entry in running.items()})

    def _standing(self, stage: str, entry: _Running) -> "Standing":
        row = latest(self._root, stage, since=entry.began - 1)
        if row is not None and entry.first is None:
            entry.first = row
        before = read_timing(self._root, stage)
        return standing(row, entry.first, elapsed=time.time() - entry.began, usual=before.seconds if before else None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """How far a running stage is."""

    step: int | None
    total: int | None
    elapsed: float
    """Seconds since it began."""
    left: float | None
    """Estimated seconds to its end, None when there is nothing to go by."""
    metrics: dict[str, float]

    def line(self, stage: str) -> str:
        """Write it as one line of a log."""
        steps = f" step {self.step}/{self.total}" if self.step is not None else ""
        left = f", about {duration(self.left)} left" if self.left is not None else ""
        shown = "".join(f"  {name} {value:.4g}" for name, value in self.metrics.items())
        return f"{stage}: {duration(self.elapsed)}{steps}{left}{shown}"


def standing(row: Row | None, first: Row | None, *, elapsed: float, usual: float | None) -> Standing:
    """Work out how far a stage is.

    Args:
        row: its newest live row; None when it has none (yet).
        first: the first row of the present attempt.
        elapsed: seconds since the stage began.
        usual: seconds that it took the last time, if it ever ran here.
    """
    if row is None:
        left = max(usual - elapsed, 0.0) if usual is not None else None
        return Standing(step=None, total=None, elapsed=elapsed, left=left, metrics={})
    step, total = int(row["step"]), int(row.get("total", 0))
    left = None
    if first is not None and step > int(first["step"]):
        pace = (float(row["time"]) - float(first["time"])) / (step - int(first["step"]))
        # The row is some time old already.
        left = max(pace * max(total - step, 0) - max(time.time() - float(row["time"]), 0.0), 0.0)
    return Standing(step=step, total=total or None, elapsed=elapsed, left=left, metrics=telling(row))


def telling(row: Row) -> dict[str, float]:
    """Choose the few metrics of a row that are shown."""
    numbers = {name: value for name, value in row.items() if name not in NOT_METRICS and isinstance(value, int | float)}
    order = [name for name in TELLING if name in numbers] + [name for name in numbers if name not in TELLING]
    return {name: float(numbers[name]) for name in order[:SHOWN_METRICS]}


class LogDisplay(_Watch):
    """Lines on stderr: when a stage begins and ends, and every few seconds how far it is."""

    def __init__(self, root: Path, every: float = LOG_SECONDS) -> None:
        """Prepare.

        Args:
            root: the project's root.
            every: seconds between two lines of a running stage.
        """
        super().__init__(root, every)

    def begin(self, stage: str) -> None:
        """See `Display`."""
        note(f"{stage}: running")
        super().begin(stage)

    def end(self, stage: str, status: str, seconds: float) -> None:
        """See `Display`."""
        super().end(stage, status, seconds)
        note(f"{stage}: {status}" + (f" in {duration(seconds)}" if seconds >= 0.05 else ""))

    def note(self, text: str) -> None:
        """See `Display`."""
        note(text)

    def show(self, standing: Mapping[str, Standing]) -> None:
        """Write a line per running stage."""
        for stage, state in standing.items():
            note(state.line(stage))


class LiveDisplay(_Watch):
    """A display on the terminal with a bar per running stage; what is over scrolls away above it."""

    def __init__(self, root: Path) -> None:
        """Prepare; nothing is drawn before the display is entered."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        super().__init__(root, REFRESH_SECONDS)
        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description:<9}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[steps]:>9}"),
            TextColumn("{task.fields[clock]}"),
            TextColumn("[cyan]{task.fields[metrics]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._progress.start()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        super().__exit__(kind, error, trace)
        self._progress.stop()

    def begin(self, stage: str) -> None:
        """See `Display`."""
        self._bars[stage] = self._progress.add_task(stage, total=None, steps="", clock="", metrics="")
        super().begin(stage)

    def end(self, stage: str, status: str, seconds: float) -> None:
        """See `Display`."""
        super().end(stage, status, seconds)
        if stage in self._bars:
            self._progress.remove_task(self._bars.pop(stage))
        mark = {"failed": "[red]failed[/]", "stopped": "[yellow]stopped[/]", "run": "[green]done[/]"}.get(
            status, status
        )
        self._progress.console.print(f"  {stage:<9} {mark} {duration(seconds) if seconds >= 0.05 else ''}")

    def note(self, text: str) -> None:
        """See `Display`."""
        self._progress.console.print(text, markup=False, highlight=False)

    def show(self, standing: Mapping[str, Standing]) -> None:
        """Redraw the bars."""
        for stage, state in standing.items():
            if stage not in self._bars:
                continue
            left = f", {duration(state.left)} left" if state.left is not None else ""
            done, total = (state.step, state.total) if state.step is not None else _by_time(state)
            self._progress.update(
                self._bars[stage],
                completed=done,
                total=total,
                steps=f"{state.step}/{state.total}" if state.step is not None else "",
                clock=f"{duration(state.elapsed)}{left}",
                metrics="  ".join(f"{name} {value:.4g}" for name, value in state.metrics.items()),
            )


def choose_display(root: Path) -> LogDisplay | LiveDisplay:
    """Return the live display on a terminal, lines elsewhere."""
    return LiveDisplay(root) if sys.stderr.isatty() else LogDisplay(root)


def _by_time(state: Standing) -> tuple[float, float | None]:
    """Fill the bar of a stage without steps by its usual duration."""
    return (state.elapsed, state.elapsed + state.left) if state.left else (0.0, None)
