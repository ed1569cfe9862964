"""Repeated looks: which challenger this is that is held against the champion, and what error it may still spend.

Every comparison with the champion is a chance to be fooled. Twenty challengers that are no better, each tested at 3%,
promote one with a chance near one half. Therefore all challengers of one champion share one allowance: the k-th may
err with

    alpha_k = alpha x 6 / (pi^2 k^2),    sum over all k = alpha,

so by the union bound the chance that ANY equal (or worse) challenger is ever promoted against one champion is at most
alpha, for any number of challengers, stopped for any reason, and however much their results have to do with each
other. The price is power at later looks; a new champion brings a new allowance.

Source: alpha-spending over a stream of hypotheses: Foster and Stine 2008, section 2,
https://doi.org/10.1111/j.1467-9868.2007.00643.x; Tian and Ramdas 2021, section 2, https://arxiv.org/abs/1910.04900
"""

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tasks.history import now, who
from tasks.mlflow_store import exclusive
from tasks.settings import state_dir

FILE = "gate.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One challenger held against one opponent under the same conditions; repeating it is the same look."""

    when: str
    """First time, ISO 8601, UTC."""
    who: str
    model: str
    opponent: str
    """Whose allowance it spends: stage and weights of the champion, or "none" while there is none."""
    challenger: str
    """Its stage and weights."""
    conditions: str
    """Digest of prompts, judge, decoding and seed."""
    number: int
    """1 for the first."""
    error: float
    """Chance of error that it was given."""


def allowance(total: float, number: int) -> float:
    """Chance of promoting an equal challenger that a look may spend.

    Args:
        total: over all looks at one champion, in (0, 1).
        number: of the look, from 1.
    """
    return total * 6 / (math.pi * number) ** 2


def record_look(
    root: Path, *, model: str, opponent: str, challenger: str, conditions: str, total: float
) -> Look:  # fmt: skip
    """Return the look, which is written down before anything is compared, so that no crash gives one for nothing.

    Args:
        root: the project's root.
        model: registered name.
        opponent: as in `Look`.
        challenger: as in `Look`.
        conditions: as in `Look`.
        total: chance of error over all looks.
    """
    path = state_dir(root) / FILE
    with exclusive(path.with_suffix(".lock")):
        looks = [look for look in read_looks(root) if (look.model, look.opponent) == (model, opponent)]
        for look in looks:
            if (look.challenger, look.conditions) == (challenger, conditions):
                return look
        number = max([len(looks), *(look.number for look in looks)]) + 1
        look = Look(
            when=now(), who=who(), model=model, opponent=opponent, challenger=challenger, conditions=conditions,
            number=number, error=allowance(total, number),
        )  # fmt: skip
        _append(path, json.dumps(asdict(look), sort_keys=True))
    return look


def read_looks(root: Path) -> list[Look]:
    """Return all looks, oldest first; a line torn by a power cut, whose verdict nobody saw, is left out."""
    path = state_dir(root) / FILE
    if not path.is_file():
        return []
    names = {field.name for field in fields(Look)}
    looks = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and names <= set(entry) and isinstance(entry["number"], int):
            looks.append(Look(**{name: entry[name] for name in names}))
    return looks


def _append(path: Path, line: str) -> None:
    with path.open("a+b") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":  # a torn line must not swallow this one
                line = "\n" + line
        stream.write(line.encode("utf-8") + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
