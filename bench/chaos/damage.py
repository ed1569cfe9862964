"""Damage to files at rest."""

import random
import shutil
from pathlib import Path

import yaml

from bench.chaos.arena import Arena


def damage(file: Path, rng: random.Random) -> str:
    """Cut a file off, change a byte of it, empty it or remove it; returns what was done."""
    file.chmod(0o644)
    data, how = file.read_bytes(), rng.choice(("cut off", "changed", "emptied", "removed"))
    if how == "removed":
        file.unlink()
    elif how == "changed" and data:
        at = rng.randrange(len(data))
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 + rng.randrange(255))]) + data[at + 1 :])
    else:
        file.write_bytes(data[: rng.randrange(len(data))] if how == "cut off" and data else b"")
    return f"{file.parent.name}/{file.name[:20]} {how}"


def lose_some_output(arena: Arena, rng: random.Random) -> str:
    """Delete one output that dvc.lock names; returns what was done."""
    lock = arena.root / "dvc.lock"
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
    outs = sorted(out["path"] for stage in stages.values() for out in stage["outs"])
    if not outs:
        return "no output there yet"
    path = arena.root / rng.choice(outs)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return f"{path.relative_to(arena.root)} deleted"
