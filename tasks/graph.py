"""The graph of stages as DVC has it, and what a run would do with it; nothing else in the project lists stages."""

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput
from tasks.changes import Inspector
from tasks.planned_stage import PlannedStage, Reason
from tasks.pointers import require_inside
from tasks.settings import tmp_dir

__all__ = ["Graph", "PlannedStage", "Reason", "Stage", "load_graph", "plan", "plan_with_graph", "stale"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of dvc.yaml."""

    name: str
    deps: tuple[str, ...]
    """Paths from the root, files and folders."""
    outs: tuple[str, ...]
    """Outputs, metrics and plots."""
    params: tuple[str, ...]
    upstream: frozenset[str]
    """Stages whose outputs this one reads."""
    frozen: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """All stages; `order` names them so that each comes after what it reads."""

    stages: dict[str, Stage]
    order: tuple[str, ...]
    sources: tuple[str, ...] = ()
    """Data files and folders added by `dvc add`, as paths from the root."""

    def stage(self, name: str) -> Stage:
        """Return a stage.

        Raises:
            BadInput: there is none of that name.
        """
        if name not in self.stages:
            raise BadInput(f"dvc.yaml: no stage {name!r}; it has {', '.join(self.order)}")
        return self.stages[name]

    def ancestors(self, name: str) -> frozenset[str]:
        """Return the stages that `name` needs, directly or not, without itself."""
        found: set[str] = set()
        todo = list(self.stage(name).upstream)
        while todo:
            current = todo.pop()
            if current not in found:
                found.add(current)
                todo += self.stages[current].upstream
        return frozenset(found)

    def descendants(self, name: str) -> frozenset[str]:
        """Return the stages that need `name`, directly or not, without itself."""
        return frozenset(other for other in self.order if name in self.ancestors(other))

    def until(self, name: str | None) -> tuple[str, ...]:
        """Return, in order, the stage `name` and all it needs; every stage for None."""
        if name is None:
            return self.order
        wanted = {name, *self.ancestors(name)}
        return tuple(stage for stage in self.order if stage in wanted)


def load_graph(root: Path) -> Graph:
    """Read the graph from DVC.

    Raises:
        BadInput: dvc.yaml cannot be read, or the folder is not a DVC repository.
    """
    with _repository(root) as repo:
        return _graph(repo, root)[0]


def plan(root: Path, *, until: str | None = None, force: Collection[str] = ()) -> list[PlannedStage]:
    """Say what a run would do, stage by stage, in order, without changing anything.

    Args:
        root: the project's root.
        until: only this stage and what it needs.
        force: stages to be executed whatever their state.

    Raises:
        BadInput: dvc.yaml cannot be read, or a stage of that name does not exist.
    """
    return plan_with_graph(root, until=until, force=force)[1]


def plan_with_graph(
    root: Path, *, until: str | None = None, force: Collection[str] = ()
) -> tuple[Graph, list[PlannedStage]]:
    """Return the graph and the plan from one opening of the repository; see `plan`."""
    with _repository(root) as repo:
        graph, objects = _graph(repo, root)
        for name in force:
            graph.stage(name)
        inspector = Inspector(repo, root)
        planned = [inspector.inspect(name, objects[name], force=name in force) for name in graph.until(until)]
        inspector.close()
        return graph, planned


def stale(root: Path) -> dict[str, list[Reason]]:
    """Return the stages that are not simply cached, with the reasons."""
    return {stage.name: list(stage.reasons) for stage in plan(root) if stage.action != "cached"}


@contextmanager
def _repository(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    require_inside(root)

    # On a terminal DVC draws a bar per file that it hashes; set after the import, which sets up its loggers afresh.
    logging.getLogger("dvc.progress").setLevel(logging.CRITICAL)
    try:
        with Repo(str(root), config={"core": {"site_cache_dir": str(tmp_dir(root) / "dvc")}}) as repo:
            yield repo
    except DvcException as error:
        sentence = " ".join(str(error).split())
        file = "that file" if re.search(r"\w\.(dvc|yaml|lock)\b", sentence) else "dvc.yaml"
        cure = f"mend {file}, or `git checkout` the committed one"
        raise BadInput(f"{root}: DVC cannot read the project: {sentence.rstrip('.')}; {cure}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if _is_ours(error):
            raise
        raise BadInput(
            f"{root}: DVC cannot read the project ({type(error).__name__}: {error}); mend dvc.yaml, dvc.lock, "
            "params.yaml or a .dvc file, or `git checkout` the committed one"
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Whether code of this project raised it; DVC stumbles over some broken files instead of refusing them."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = str(frame.tb_frame.f_globals.get("__name__", "")) if frame is not None else ""
    return raised_in.partition(".")[0] in ("rlhf", "tasks", "flows")


def _graph(repo: Any, root: Path) -> tuple[Graph, dict[str, Any]]:
    """Return the graph and DVC's own object of each stage."""
    pipeline = [stage for stage in repo.index.stages if getattr(stage, "name", None)]
    objects = {_name(stage): stage for stage in pipeline}
    inspector = Inspector(repo, root)
    edges = repo.index.graph
    stages = {}
    for name, stage in objects.items():
        upstream = {_name(other) for other in edges.successors(stage) if getattr(other, "name", None)}
        params = {param for dep in stage.params for param in dep.params}
        files = [dep for dep in stage.deps if dep not in stage.params]
        stages[name] = Stage(
            name=name,
            deps=tuple(inspector.path(dep) for dep in files),
            outs=tuple(inspector.path(out) for out in stage.outs),
            params=tuple(sorted(params)),
            upstream=frozenset(upstream),
            frozen=bool(stage.frozen),
        )
    sources = tuple(inspector.path(out) for stage in repo.index.stages if stage.is_data_source for out in stage.outs)
    return Graph(stages=stages, order=_ordered(stages), sources=sources), objects


def _name(stage: Any) -> str:
    folder = stage.path_in_repo
    return stage.name if folder == "dvc.yaml" else f"{folder}:{stage.name}"


def _ordered(stages: dict[str, Stage]) -> tuple[str, ...]:
    """Sort so that a stage follows its upstream, else in the order of dvc.yaml."""
    order: list[str] = []
    while len(order) < len(stages):
        ready = next(name for name, stage in stages.items() if name not in order and stage.upstream <= set(order))
        order.append(ready)
    return tuple(order)
