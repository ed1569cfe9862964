"""Why a stage would run: each of its dependencies, parameters and outputs against what dvc.lock recorded.

DVC's own dry run reports stages as cached that would run and refuses where an intermediate output is absent, so the
question is answered here from DVC's index: read-only, without a lock, in one process.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from tasks.cache_check import CacheCheck, Damage
from tasks.planned_stage import Action, PlannedStage, Reason

_Content: TypeAlias = tuple[Any, Any]
"""DVC's meta data and hash of a file or folder; the run-cache's key needs both."""

SHORT = 7
"""Characters of a hash that are shown."""


class Inspector:
    """Looks at the stages of a repository, upstream first, and remembers what each would leave behind."""

    def __init__(self, repo: Any, root: Path) -> None:
        """Keep the repository.

        Args:
            repo: an open `dvc.repo.Repo`.
            root: its root folder.
        """
        self._repo, self._root = repo, root
        self._producer: dict[str, str] = {}  # output path -> stage that makes it
        self._actions: dict[str, Action] = {}
        self._restored: dict[str, _Content] = {}  # output path -> what the run-cache will put there
        self._cache = CacheCheck(root)

    def inspect(self, name: str, stage: Any, *, force: bool = False) -> PlannedStage:
        """Decide about one stage; every stage before it must have been inspected.

        Args:
            name: the stage's name.
            stage: DVC's object for it.
            force: it is to be executed whatever its state.
        """
        planned = self._decide(name, _View(stage, self), force)
        self._actions[name] = planned.action
        for out in stage.outs:
            self._producer[self.path(out)] = name
        return planned

    def path(self, item: Any) -> str:
        """Return the path of a dependency or output from the root."""
        return os.path.relpath(item.fs_path, self._root)

    def close(self) -> None:
        """Keep what was found intact in the cache."""
        self._cache.remember()

    def damage(self, stage: Any) -> list[Damage]:
        """Return what is wrong in the cache with the outputs that DVC's object of a stage names."""
        outs = [out for out in stage.outs if out.use_cache and out.hash_info]
        found = (self._cache.damage(self.path(out), str(out.hash_info.value)) for out in outs)
        return [damage for damage in found if damage is not None]

    def unsettled(self, path: str) -> tuple[str, str] | None:
        """Return (output, stage) when what will lie at `path` is not known yet."""
        for out, stage in self._overlapping(path):
            action = self._actions[stage]
            if action in ("run", "maybe") or (action == "restore" and out != path):
                return out, stage
        return None

    def restored(self, path: str) -> "_Content | None":
        """Return what a restored stage will leave at `path`."""
        return self._restored.get(path)

    def _overlapping(self, path: str) -> Iterator[tuple[str, str]]:
        for out, stage in self._producer.items():
            if path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/"):
                yield out, stage

    def _decide(self, name: str, view: "_View", force: bool) -> PlannedStage:
        if force:
            return PlannedStage(name=name, action="run", reasons=(Reason(kind="forced", name=name),))
        if view.stage.frozen:
            return self._frozen(name, view)
        if view.stage.is_callback or view.stage.always_changed:
            return PlannedStage(name=name, action="run", reasons=(Reason(kind="always", name=name),))
        certain = [*view.stage_reasons, *view.dependency_reasons, *view.parameter_reasons]
        if view.waits_for and view.new:  # what else may follow tells nobody anything
            return PlannedStage(name=name, action="run", reasons=tuple(certain))
        if view.waits_for:
            outs = view.output_reasons
            held, damage = self._can_restore(view, use_lock=True)
            lost = (bool(outs) or bool(damage)) and not held
            action: Action = "run" if certain or lost else "maybe"
            reasons = (*certain, *outs, *_told(damage), *view.waits_for)
            return PlannedStage(name=name, action=action, reasons=reasons, damage=tuple(damage))
        if certain or view.output_reasons:
            restorable, damage = self._can_restore(view, use_lock=not certain)
            reasons = (*certain, *view.output_reasons, *_told(damage))
            action = "restore" if restorable else "run"
            return PlannedStage(name=name, action=action, reasons=reasons, damage=tuple(damage))
        return self._unchanged(name, view)

    def _unchanged(self, name: str, view: "_View") -> PlannedStage:
        """Decide about a stage of which only what the cache holds may have changed."""
        damage = self.damage(view.stage)
        if all(one.source == "work tree" for one in damage):
            action: Action = "cached"
        else:
            action = "restore" if all(one.source for one in damage) else "run"
        return PlannedStage(name=name, action=action, reasons=_told(damage), damage=tuple(damage))

    def _frozen(self, name: str, view: "_View") -> PlannedStage:
        note = (Reason(kind="frozen", name=name),)
        if view.output_reasons:
            return PlannedStage(name=name, action="run", reasons=(*view.output_reasons, *note))
        if self.damage(view.stage):
            return self._unchanged(name, view)
        stale = view.dependency_reasons or view.parameter_reasons or view.waits_for
        return PlannedStage(name=name, action="cached", reasons=note if stale else ())

    def _can_restore(self, view: "_View", *, use_lock: bool) -> tuple[bool, list[Damage]]:
        """Whether DVC holds every output for these inputs, or will once it is mended; remembers their hashes if so."""
        entry = view.lock_entry() if use_lock else view.run_cache_entry()
        if entry is None:
            return False, []
        held = view.as_recorded(entry)
        damage = self.damage(held)
        if not all(one.source for one in damage) or not (damage or held.outs_cached()):
            return False, damage
        if not view.waits_for:
            self._restored.update({self.path(out): (out.meta, out.hash_info) for out in held.outs})
        return True, damage


class _View:
    """One stage as it stands; every answer is computed once."""

    def __init__(self, stage: Any, inspector: Inspector) -> None:
        from dvc.dependency import ParamsDependency

        self.stage, self._inspector = stage, inspector
        self._params = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
        self._files = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
        self.new = not any(out.hash_info for out in stage.outs) and not any(dep.hash_info for dep in stage.deps)

    @cached_property
    def stage_reasons(self) -> list[Reason]:
        """It never ran, or its command differs."""
        name = self.stage.name
        if self.new:
            return [Reason(kind="new", name=name)]
        return [Reason(kind="command", name=name)] if self.stage.changed_stage() else []

    @cached_property
    def waits_for(self) -> list[Reason]:
        """Dependencies that a stage before this one may change."""
        found = (self._inspector.unsettled(self._inspector.path(dep)) for dep in self._files)
        return [Reason(kind="upstream", name=out, new=stage) for out, stage in dict.fromkeys(filter(None, found))]

    @cached_property
    def dependency_reasons(self) -> list[Reason]:
        """Files that differ from the record, as far as that is settled."""
        reasons = []
        for dep in self._files:
            path = self._inspector.path(dep)
            if self.new or self._inspector.unsettled(path):
                continue
            old = dep.hash_info.value if dep.hash_info else None
            content = self._present(dep, path)
            new = content[1].value if content else None
            if old != new:
                reasons.append(Reason(kind="dependency", name=path, old=_short(old), new=_short(new)))
        return reasons

    @cached_property
    def parameter_reasons(self) -> list[Reason]:
        """Parameters whose value differs from the record."""
        reasons = []
        for dep in self._params if not self.new else []:
            recorded = dep.hash_info.value if dep.hash_info else {}
            present = dep.read_params()
            for name in dep.params or {**present, **recorded}:
                reasons += [
                    Reason(kind="parameter", name=key, old=_text(old), new=_text(new))
                    for key, old, new in differences(name, recorded.get(name, _ABSENT), present.get(name, _ABSENT))
                ]
        return reasons

    @cached_property
    def output_reasons(self) -> list[Reason]:
        """Outputs that are missing or changed by hand."""
        words = {"deleted": "missing", "modified": "not what the stage wrote"}
        reasons = []
        for out in self.stage.outs if not self.new else []:
            for state in out.workspace_status().values():
                word = words.get(state, state) if out.exists else "missing"
                reasons.append(Reason(kind="output", name=self._inspector.path(out), new=word))
        return reasons

    def lock_entry(self) -> Any:
        """Return the stage's own record in the form of the run-cache; None if an output has none."""
        from dvc.stage.serialize import to_single_stage_lockfile

        if self.new or not all(out.hash_info for out in self.stage.outs):
            return None
        return to_single_stage_lockfile(self.stage)

    def as_recorded(self, entry: Any) -> Any:
        """Return DVC's object of this stage with the outputs of a lock or run-cache entry."""
        from dvc.stage import PipelineStage, create_stage
        from dvc.stage.loader import StageLoader

        # Absolute paths: DVC's own way to do this takes them from the current folder.
        where = {"repo": self.stage.repo, "path": self.stage.path, "wdir": self.stage.wdir}
        held = create_stage(
            PipelineStage, cmd=entry["cmd"], outs=[out["path"] for out in entry.get("outs", [])], **where
        )
        StageLoader.fill_from_lock(held, entry)
        return held

    def run_cache_entry(self) -> Any:
        """Return what DVC's run-cache holds for the present command, dependencies and parameters."""
        from dvc.dependency.param import MissingParamsError, MissingParamsFile
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile

        stage = self.stage
        if not (stage.cmd and stage.deps and stage.outs) or any(out.persist for out in stage.outs):
            return None
        before = [(dep, dep.meta, dep.hash_info) for dep in stage.deps]
        try:
            for dep in self._files:
                content = self._present(dep, self._inspector.path(dep))
                if content is None:
                    return None
                dep.meta, dep.hash_info = content
            for dep in self._params:
                dep.hash_info = dep.get_hash()
            key = _get_cache_hash(to_single_stage_lockfile(stage), key=True)
        except (MissingParamsError, MissingParamsFile):
            return None
        finally:
            for dep, meta, hash_info in before:
                dep.meta, dep.hash_info = meta, hash_info
        folder = Path(stage.repo.stage_cache._get_cache_dir(key))
        entries = sorted(folder.iterdir(), key=lambda entry: entry.stat().st_mtime) if folder.is_dir() else []
        return stage.repo.stage_cache._load_cache(key, entries[-1].name) if entries else None

    def _present(self, dep: Any, path: str) -> "_Content | None":
        restored = self._inspector.restored(path)
        if restored is not None:
            return restored
        if not dep.exists:
            return None
        meta, hash_info = dep._get_hash_meta()
        return meta, hash_info


_ABSENT = object()


def differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old, new) for every leaf in which two parameter values differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**new, **old}:
            yield from differences(f"{name}.{key}", old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif old != new and not (isinstance(old, list | tuple) and isinstance(new, list | tuple) and [*old] == [*new]):
        yield name, old, new


def _told(damage: Iterable[Damage]) -> tuple[Reason, ...]:
    """Say what is wrong in the cache; an output that is nowhere at all is told by its absence in the work tree."""
    return tuple(Reason(kind="output", name=one.path, new=str(one)) for one in damage if not one.nowhere)


def _text(value: Any) -> str | None:
    return None if value is _ABSENT else repr(value) if isinstance(value, str) else str(value)


def _short(value: str | None) -> str | None:
    return value[:SHORT] if value else None
