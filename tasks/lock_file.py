"""What `dvc.lock` says each stage was made from and what it produced."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from json import dumps
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput

LOCK_FILE = "dvc.lock"
RAW_DATA = "data/raw"


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedStage:
    """One stage as it last ran: hashes are DVC's, with `.dir` at the end for a folder."""

    name: str
    cmd: str
    deps: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameter path -> value, over all parameter files."""
    outs: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each output."""


def read_lock(root: Path) -> dict[str, LockedStage]:
    """Read dvc.lock.

    Args:
        root: the project's root.

    Returns:
        One entry per stage that has ever finished; empty if nothing has.

    Raises:
        BadInput: the file is not what DVC writes.
    """
    path = root / LOCK_FILE
    return parse_lock(path.read_bytes(), str(path)) if path.is_file() else {}


def parse_lock(content: bytes, where: str) -> dict[str, LockedStage]:
    """Read the bytes of a lock file, as `read_lock`.

    Args:
        content: the file.
        where: its name in a message.
    """
    from ruamel.yaml import YAML  # reads 3e-6 as a number, as DVC does and PyYAML does not
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe").load(content.decode("utf-8")) or {}
        stages = document.get("stages") or {}
        return {name: _entry(name, block) for name, block in stages.items()}
    except (YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BadInput(
            f"{where}: not a lock file of DVC ({type(error).__name__}); restore it with `git checkout {LOCK_FILE}`"
        ) from error


def lineage(lock: Mapping[str, LockedStage], stage: str) -> dict[str, LockedStage]:
    """Return the entries of a stage and of all stages that it was made from, in the order of the lock file.

    Args:
        lock: the lock file.
        stage: the stage; empty when it never finished.
    """
    makers = {path: name for name, entry in lock.items() for path in entry.outs}
    found: set[str] = set()
    todo = [stage] if stage in lock else []
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [makers[path] for path in lock[name].deps if path in makers]
            # A folder that is read may hold outputs, as data/raw does.
            todo += [
                maker for path, maker in makers.items() if any(path.startswith(f"{dep}/") for dep in lock[name].deps)
            ]
    return {name: entry for name, entry in lock.items() if name in found}


def output_hash(root: Path, stage: str, path: str | None = None) -> str | None:
    """Return the hash of an output as recorded, None when the stage has never finished.

    Args:
        root: the project's root.
        stage: the stage's name.
        path: the output; by default the model of that stage, data/models/STAGE.
    """
    locked = read_lock(root).get(stage)
    return None if locked is None else locked.outs.get(path or f"data/models/{stage}")


def data_hash(root: Path) -> str | None:
    """Return the hash of the raw data that the validated sets were made from, None when there is no record of it."""
    locked = read_lock(root).get("validate")
    return None if locked is None else locked.deps.get(RAW_DATA)


def params_hash(stage: LockedStage) -> str:
    """Return a hash of the parameters a stage ran with; 32 hexadecimal digits."""
    return sha256(dumps(stage.params, sort_keys=True).encode()).hexdigest()[:32]


def _entry(name: str, block: Mapping[str, Any]) -> LockedStage:
    params = {key: value for values in (block.get("params") or {}).values() for key, value in values.items()}
    deps, outs = block.get("deps") or [], block.get("outs") or []
    command = block["cmd"]
    return LockedStage(
        name=name,
        cmd=command if isinstance(command, str) else "\n".join(command),
        deps={item["path"]: _hash(item) for item in deps},
        params=params,
        outs={item["path"]: _hash(item) for item in outs},
        sizes={item["path"]: int(item.get("size") or 0) for item in outs},
    )


def _hash(item: Mapping[str, Any]) -> str:
    return str(item[item.get("hash", "md5")])
