"""What settings must not hold: secrets, which `dvc.lock` and MLflow would copy, and models that nobody pinned."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from rlhf.errors import BadInput, secret_in

SCRATCH = "scratch"
SECRET_NAMES = re.compile(r"(?i)(?:^|_)(?:password|passwd|secret|api_?key|access_?key|auth_?token|token|credentials?)$")


def refuse_secrets(params: Mapping[str, Any], file: str) -> None:
    """Refuse a value that looks like a secret; the message does not show it.

    Args:
        params: the whole file, read.
        file: what messages call it.

    Raises:
        BadInput: naming the key.
    """
    for key, name, value in _texts(params):
        kind = secret_in(value) or ("a secret" if SECRET_NAMES.search(name) and value.strip() else None)
        if kind:
            raise BadInput(
                f"{file}: {key} looks like {kind}, and settings are copied to dvc.lock and MLflow; take it out of the "
                "file, set it as an environment variable instead, and renew it if it was committed"
            )


def require_pinned(name: str, revision: Any, file: str) -> None:
    """Refuse a base model that lies outside data/base, or one of the hub without a commit or tag.

    Args:
        name: `sft.base_model`.
        revision: `sft.revision`.
        file: what messages call it.

    Raises:
        BadInput: naming the key.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts or name.startswith((".", "-", "~")) or len(path.parts) > 2:
        raise BadInput(
            f"{file}: sft.base_model is {name!r}, a path; wanted {SCRATCH}, a folder of data/base (`ratchet ingest "
            "--model FOLDER --as NAME` brings one in) or an id of the hub such as owner/model"
        )
    if "/" not in name:
        return
    from rlhf.starting_point import MOVING  # here, since it brings torch with it

    if revision is None or str(revision).strip().lower() in MOVING or "refs/" in str(revision):
        said = "is empty" if revision is None else f"is {str(revision)!r}, which moves"
        raise BadInput(
            f"{file}: sft.base_model is {name!r}, an id of the hub, and sft.revision {said}; set it to a commit, so "
            "that the same settings give the same model"
        )


def _texts(tree: Any, key: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Every text of a tree with its dotted key and the last part of that; what aliases share comes once."""
    seen: set[int] = set()
    todo: list[tuple[Any, str, str]] = [(tree, key, name)]
    while todo:
        value, key, name = todo.pop()
        if isinstance(value, str):
            yield key, name, value
        elif isinstance(value, Mapping | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            for inner, item in items:
                if isinstance(inner, str):
                    yield key or "a key", "", inner
                todo.append((item, f"{key}.{inner}".lstrip("."), str(inner)))
