"""What a run did, for its summary and its exit code."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tasks.failures import Failure
from tasks.graph import Graph
from tasks.stage import StageResult

if TYPE_CHECKING:
    from tasks.gate import Decision
    from tasks.publish import PublishReport


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
    cancelled: bool = False
    """Whether Prefect stopped it."""
    run_id: str = ""
    local_server: bool = False
    """Whether the Prefect server is our own."""
    over: bool = False
    """Whether everything was done that was to be done; what may be missing then is Prefect's record of it."""

    @property
    def exit_code(self) -> int:
        """0 done; 1 a stage failed, could not be published for no foreseen reason, or the gate said no; 2 bad input."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        if self.failures:
            return max(2 if failure.kind == "bad_input" else 1 for failure in self.failures.values())
        if self.cancelled:
            return 1
        verdict = self.decision.verdict if self.decision else None
        refused = verdict is not None and not verdict.promote and bool(verdict.reasons)
        return 1 if self.publish_error or self.gate_error or refused else 0
