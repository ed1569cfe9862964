"""The key under which a stage's checkpoints lie: a hash of all that its result depends on.

That is the stage's block in `dvc.yaml`, its parameters and the bytes of its dependencies. Not in it are the settings
that change results by rounding only (`ROUNDING`): a stage that ran out of memory or lost a machine goes on under
others, and its log says so.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

GAP = re.compile(r"\$\{\s*([\w.]+)\s*\}")
ROUNDING = ("launch", "threads", "micro_batch", "engine")
"""Settings that change results by rounding only: a checkpoint is found again when they have changed."""


def stage_key(stage: str, arguments: Sequence[str], params: Mapping[str, Any], root: Path = Path()) -> str:
    """Hash of everything that a stage's result depends on: command, parameters, bytes of its dependencies.

    Args:
        stage: name of the stage in `dvc.yaml`.
        arguments: command line, used where `dvc.yaml` has no such stage.
        params: the whole parameter file; only what the stage's block names is hashed, or all of it without a block.
        root: folder that holds `dvc.yaml`.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    block = _dvc_block(stage, root)
    params = {**params, stage: _without_rounding(params.get(stage))}
    if block is None:
        digest.update(json.dumps([list(arguments), params], sort_keys=True, default=str).encode())
        return digest.hexdigest()[:16]
    names = [entry for entry in block.get("params", []) if isinstance(entry, str)]
    chosen = {name: _lookup(params, name) for name in names}
    digest.update(json.dumps([block, chosen], sort_keys=True, default=str).encode())
    for dependency in sorted(_filled(str(name), params) for name in block.get("deps", [])):
        for file in _files_below(root / dependency):
            digest.update(f"\0{file.relative_to(root)}\0".encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def rounding_settings(stage: str, params: Mapping[str, Any]) -> str:
    """Those settings of a stage that are not in its key, as JSON."""
    section = params.get(stage)
    section = section if isinstance(section, Mapping) else {}
    return json.dumps({name: section[name] for name in ROUNDING if name in section}, sort_keys=True, default=str)


def _without_rounding(section: Any) -> Any:
    """A stage's section without what changes results by rounding only; the kind of optimizer does more than that."""
    if not isinstance(section, Mapping):
        return section
    kept = {name: value for name, value in section.items() if name not in ROUNDING}
    engine = section.get("engine")
    optimizer = engine.get("optimizer", "adamw") if isinstance(engine, Mapping) else "adamw"
    return kept if optimizer == "adamw" else {**kept, "optimizer": optimizer}


def _dvc_block(stage: str, root: Path) -> dict[str, Any] | None:
    file = root / "dvc.yaml"
    if not file.is_file():
        return None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a tenth of the time
    stages = (yaml.load(file.read_text(encoding="utf-8"), loader) or {}).get("stages", {})
    block = stages.get(stage)
    return block if isinstance(block, dict) else None


def _filled(text: str, params: Mapping[str, Any]) -> str:
    """A path of `dvc.yaml` with its `${section.key}` replaced by parameters, as DVC does."""
    return GAP.sub(lambda gap: str(_lookup(params, gap.group(1))), text)


def _lookup(params: Mapping[str, Any], dotted: str) -> Any:
    value: Any = params
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _files_below(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []
