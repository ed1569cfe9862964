"""Loading one section of `params.yaml` into the frozen dataclass of its recipe, with errors that name the cure."""

import copy
import dataclasses
import difflib
import functools
import re
import reprlib
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rlhf.errors import BadInput

T = TypeVar("T")

_SHORT = reprlib.Repr()
"""How values are shown in messages: a few aliases of YAML can stand for a list of millions."""
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlevel = 80, 80, 3

LARGEST = sys.float_info.max
MOST_NAMED = 24
"""Keys that a message lists."""
LAUNCH_KEYS = ("threads", "launch")
"""Keys that every stage section has and that the launcher, not the recipe, reads."""


class Loader(yaml.SafeLoader):
    """SafeLoader that reads numbers as YAML 1.2 does and refuses a key that stands twice.

    PyYAML follows YAML 1.1, in which `3e-6` is a string; DVC reads the same file with YAML 1.2 rules, in which it is
    a float. Both must see the same number.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; a repeated key is an error, since the later value would silently win."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (dict, list)):
                raise BadInput(f"{self.name}:{key_node.start_mark.line + 1}: a key that is no text; wanted NAME: VALUE")
            if key in seen:
                raise BadInput(
                    f"{self.name}:{key_node.start_mark.line + 1}: the key {key!r} stands twice in one section; keep one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def read_params(path: Path) -> dict[str, Any]:
    """Read the whole parameter file.

    Raises:
        BadInput: the file is missing, is not UTF-8 YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(
            f"{path}: no such file; it holds the settings of every stage (see profiles/default.yaml)"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    params = parse(text, file=path.name)
    if not isinstance(params, dict):
        got = "is empty" if params is None else f"holds a {type(params).__name__}"
        raise BadInput(f"{path.name}: {got}, wanted one section per stage; see profiles/default.yaml")
    return params


def parse(text: str, *, file: str) -> Any:
    """Read YAML with `Loader`.

    Args:
        text: the whole file.
        file: what messages call it.

    Raises:
        BadInput: it is not valid YAML, a key stands twice, or a value cannot be built.
    """
    try:
        return copy.deepcopy(_parsed(text, file))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise BadInput(f"{where}: not valid YAML ({problem}); mend that line") from error
    except RecursionError as error:
        raise BadInput(f"{file}: brackets or blocks that are nested too deeply; mend the file") from error
    except (ValueError, TypeError, OverflowError, AttributeError) as error:  # a date or a number beyond bounds
        raise BadInput(f"{file}: a value that cannot be read ({str(error).partition(';')[0]}); mend it") from error


@functools.lru_cache(maxsize=32)
def _parsed(text: str, file: str) -> Any:
    """What `parse` returns, made once: a command reads the same files several times, 50 ms each."""
    loader = Loader(text)
    loader.name = file
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def load_section(params: Mapping[str, Any], section: str, cls: type[T], *, file: str = "params.yaml") -> T:
    """Build `cls` from `params[section]`, without `threads` and `launch`.

    Args:
        params: the whole parameter file as read by `read_params`.
        section: name of the stage.
        cls: a dataclass whose fields are the allowed keys; one that is a dataclass itself is read from a mapping.
        file: name used in messages.

    Raises:
        BadInput: the section is missing, or a key is unknown, missing, of the wrong type or out of range.
    """
    if section not in params:
        raise BadInput(f"{file}: no section {section!r}; its keys are {', '.join(_names(cls))}")
    values = params[section]
    if not isinstance(values, Mapping):
        raise BadInput(f"{file}: {section} is {_show(values)}, wanted a section with the keys {', '.join(_names(cls))}")
    return build(
        cls, {k: v for k, v in values.items() if k not in LAUNCH_KEYS}, where=f"{file}: ", prefix=f"{section}."
    )


def build(cls: type[T], values: Mapping[str, Any], *, where: str, prefix: str) -> T:
    """Build a dataclass from a mapping, checking names and types; `where` and `prefix` only shape the messages.

    A class may name keys that people will try and that must not exist, with the reason, in its attribute `REFUSED`.
    """
    names = _names(cls)
    refused: Mapping[str, str] = getattr(cls, "REFUSED", {})
    for key in values:
        if key in refused:
            raise BadInput(f"{where}{prefix}{key} is refused: {refused[key]}")
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            known = ", ".join(names) if len(names) <= MOST_NAMED else "in profiles/default.yaml"
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known keys are {known}"
            raise BadInput(f"{where}unknown key {prefix}{key}{hint}")
    given = [name for name in names if name in values]
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(cls)  # type: ignore[arg-type]  # T is one
    missing = [field.name for field in fields if field.name not in given and not _has_default(field)]
    if missing:
        raise BadInput(f"{where}missing key {prefix}{missing[0]}; profiles/default.yaml has a value for it")
    hints = typing.get_type_hints(cls)
    checked = {name: _field(values[name], hints[name], where, f"{prefix}{name}") for name in given}
    try:
        return cls(**checked)
    except ValueError as error:
        raise BadInput(f"{where}{prefix.rstrip('.')}: {error}") from error


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _field(value: Any, wanted: Any, where: str, name: str) -> Any:
    """One value; a mapping where the field is a dataclass itself, whose keys then have `name` before them."""
    if not dataclasses.is_dataclass(wanted):
        return _convert(value, wanted, f"{where}{name}")
    if not isinstance(value, Mapping):
        keys = ", ".join(field.name for field in dataclasses.fields(wanted))
        raise BadInput(f"{where}{name} is {_show(value)}, wanted a mapping, {{}} or with some of the keys {keys}")
    return build(typing.cast("type[Any]", wanted), value, where=where, prefix=f"{name}.")


def _show(value: Any) -> str:
    return "empty" if value is None else f"{_SHORT.repr(value)} (a {type(value).__name__})"


def _convert(value: Any, wanted: Any, where: str) -> Any:
    """Check `value` against a type annotation; an int is a valid float, and a list becomes a tuple."""
    if wanted is Any:
        return value
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        for argument in inner[:-1]:
            try:
                return _convert(value, argument, where)
            except BadInput:
                continue
        return _convert(value, inner[-1], where)
    if origin is typing.Literal:
        if value not in arguments:
            raise BadInput(f"{where} is {_show(value)}, wanted one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise BadInput(f"{where} is {_show(value)}, wanted a list")
        return tuple(_convert(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise BadInput(f"{where} is {_show(value)}, wanted a mapping")
        return {str(key): _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    return _scalar(value, wanted, where)


def _scalar(value: Any, wanted: Any, where: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is float and is_number:
        if not -LARGEST <= value <= LARGEST:  # also true for NaN
            raise BadInput(f"{where} is {_show(value)}, wanted a number that is finite")
        return float(value)
    if wanted is int and is_number and not isinstance(value, float):
        if not -(2**63) <= value < 2**63:
            raise BadInput(f"{where} is {_show(value)}, wanted a whole number of at most 19 digits")
        return value
    if wanted in (bool, str) and isinstance(value, wanted):
        return value
    name = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}.get(wanted, str(wanted))
    hint = "; remove the quotes" if isinstance(value, str) and wanted in (float, int) and _is_numeric(value) else ""
    raise BadInput(f"{where} is {_show(value)}, wanted {name}{hint}")


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
