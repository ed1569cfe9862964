"""Values of mlflow/registry.yaml, checked one at a time; what is wrong is named with its place and the nearest word."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import BadInput

FILE = Path("mlflow/registry.yaml")


def section(where: str, value: Any, kind: type[Any]) -> dict[str, Any]:
    """Check that a mapping has the fields of its dataclass; one with a default may be left out.

    Raises:
        BadInput: no mapping, an unknown key, or one that is missing.
    """
    if not isinstance(value, Mapping):
        raise BadInput(f"{FILE}: {where or 'the file'} is {kind_of(value)}, wanted a mapping")
    known = dataclasses.fields(kind)
    refuse_unknown(where, value, [field.name for field in known])
    for field in known:
        if field.name not in value and field.default is dataclasses.MISSING:
            raise BadInput(f"{FILE}: {_dotted(where, field.name)} is missing; add it")
    return dict(value)


def kind_of(value: Any) -> str:
    """Name what somebody wrote who wrote this."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "empty"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def refuse_unknown(where: str, value: Mapping[Any, Any], known: Sequence[str]) -> None:
    """Refuse a key that is none of the known ones.

    Raises:
        BadInput: there is one; the nearest known key is given.
    """
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
            hint = f"did you mean {_dotted(where, near[0])}?" if near else f"known are {', '.join(known)}"
            raise BadInput(f"{FILE}: unknown key {_dotted(where, str(key))}; {hint}")


def one_of(where: str, value: Any, allowed: Sequence[str]) -> Any:
    """Return a word of a list.

    Raises:
        BadInput: it is none of them.
    """
    # YAML reads a bare `off` as False, which is what a person means by it here.
    text = "off" if value is False and "off" in allowed else value
    if text not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInput(f"{FILE}: {where} is {value!r}, wanted one of {', '.join(allowed)}{hint}")
    return text


def number(where: str, value: Any, low: float, high: float, *, whole: bool = False) -> Any:
    """Return a number in [low, high].

    Raises:
        BadInput: it is none.
    """
    fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise BadInput(f"{FILE}: {where} is {value!r}, wanted {kind} from {low:g} to {high:g}")
    return value if whole else float(value)


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
