"""The `.dvc` files of a project: what they name must lie inside it, since DVC writes there when it checks data out."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.config import parse
from rlhf.errors import BadInput


def require_inside(root: Path) -> None:
    """Refuse a pointer that cannot be read, or that leads out of the project.

    Args:
        root: the project.

    Raises:
        BadInput: naming the file and what it points to.
    """
    for pointer in sorted(_pointers(root)):
        name = str(pointer.relative_to(root))
        try:
            document = parse(pointer.read_text(encoding="utf-8"), file=name)
        except UnicodeDecodeError as error:
            raise BadInput(f"{name}: not UTF-8 text (byte {error.start}); `git checkout` it") from error
        for path in _named(document, name):
            if not (pointer.parent / path).resolve().is_relative_to(root.resolve()):
                raise BadInput(
                    f"{name}: names {path}, which lies outside of the project; data enter only as copies, by "
                    "`ratchet ingest`, so delete this pointer"
                )


def _pointers(root: Path) -> Iterator[Path]:
    """Every `.dvc` file that DVC would find."""
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(folder) / file for file in files if file.endswith(".dvc") and file != ".dvc")


def _named(document: Any, name: str) -> Iterator[str]:
    """The paths that a pointer names, relative to its folder."""
    outs = document.get("outs") if isinstance(document, Mapping) else None
    if not isinstance(outs, list) or not all(isinstance(out, Mapping) for out in outs):
        raise BadInput(f"{name}: not a pointer of DVC, which lists files under `outs`; `git checkout` it, or delete it")
    folder = document.get("wdir", ".")
    for out in outs:
        path = out.get("path")
        if not isinstance(path, str) or not path or not isinstance(folder, str):
            raise BadInput(f"{name}: names {path!r} under `outs`, wanted a path; `git checkout` it, or delete it")
        yield path if folder == "." else os.path.join(folder, path)
