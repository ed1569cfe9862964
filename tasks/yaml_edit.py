"""Changing single values of a YAML file in place: the text around them, comments included, stays byte for byte."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import yaml

from rlhf.config import Loader, parse
from rlhf.errors import BadInput


def load(text: str, *, file: str) -> Any:
    """Read YAML by the same rules as `rlhf.config.read_params` (numbers of YAML 1.2, no key twice).

    Raises:
        BadInput: the text is not valid YAML.
    """
    return parse(text, file=file)


def set_values(text: str, values: Mapping[str, Any], *, file: str) -> str:
    """Replace values of a YAML file.

    Args:
        text: the file.
        values: dotted key (`seed`, `ppo.kl_coef`) to its new value; a list or mapping replaces the whole old one.
        file: what messages call it.

    Returns:
        The text, in which only values that really differ have been rewritten.

    Raises:
        BadInput: a key is not in the file.
    """
    old = load(text, file=file)
    found = _positions(text)
    edits = []
    for key, value in values.items():
        if key not in found:
            raise BadInput(f"{file}: there is no key {key}; `ratchet use default` writes a complete file")
        now = _get(old, key)
        if now == value and type(now) is type(value):
            continue
        edits.append(_edit(value, *found[key]))
    for start, end, written in sorted(edits, reverse=True):  # from the end, so that earlier positions stay true
        text = text[:start] + written + text[end:]
    after = load(text, file=file)
    wrong = [key for key, value in values.items() if _get(after, key) != value]
    if wrong:
        raise BadInput(
            f"{file}: {wrong[0]} cannot be changed in place, since aliases or odd blocks stand there; write it out, or "
            "take profiles/default.yaml"
        )
    return text


def written_scalar(value: Any) -> str:
    """Write a scalar as YAML: plain where that reads back as the same value, else in double quotes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else (".inf" if value > 0 else "-.inf")
        return re.sub(r"e([-+])0+", r"e\1", repr(value)).replace("e+", "e")
    if isinstance(value, int):
        return str(value)
    text = str(value)
    try:
        if yaml.load(f"[{text}]", Loader) == [text]:
            return text
    except (yaml.YAMLError, BadInput):
        pass  # it needs quotes: the next line gives them
    return json.dumps(text, ensure_ascii=False)


def _positions(text: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Find the key node and value node of every dotted key."""
    found: dict[str, tuple[yaml.Node, yaml.Node]] = {}

    def visit(node: yaml.Node | None, prefix: str) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            found[f"{prefix}{key.value}"] = (key, value)
            visit(value, f"{prefix}{key.value}.")

    visit(yaml.compose(text, Loader), "")
    return found


def _edit(value: Any, key: yaml.Node, old: yaml.Node) -> tuple[int, int, str]:
    """Say which part of the text gives way to what: start, end and the new value in the style of the old one."""
    after_colon = key.end_mark.index + 1
    if not _is_block(old):
        if old.start_mark.index == old.end_mark.index:  # nothing stands after the colon
            return after_colon, after_colon, " " + _flow(value)
        return old.start_mark.index, old.end_mark.index, _flow(value)
    # A block's own end mark is where the next thing begins, behind comments that are not the block's.
    end = _last(old)
    indent = "\n" + " " * old.start_mark.column
    if isinstance(value, list) and value:
        return old.start_mark.index, end, indent.join(f"- {_flow(item)}" for item in value)
    if isinstance(value, Mapping) and value:
        items = (f"{written_scalar(name)}: {_flow(item)}" for name, item in value.items())
        return old.start_mark.index, end, indent.join(items)
    return after_colon, end, " " + _flow(value)


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style


def _last(node: yaml.Node) -> int:
    if not _is_block(node):
        return int(node.end_mark.index)
    last = node.value[-1]
    return _last(last[1] if isinstance(last, tuple) else last)


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return written_scalar(value)


def _get(params: Any, key: str) -> Any:
    """Walk down to a dotted key; a key that itself holds dots is found too."""
    if not isinstance(params, Mapping):
        return None
    if key in params:
        return params[key]
    head, _, rest = key.partition(".")
    return _get(params.get(head), rest) if rest else None
