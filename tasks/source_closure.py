"""Which source files a stage is made of: the import closure of its recipe inside `rlhf`.

A stage's `deps` in dvc.yaml must be exactly these, so that a change to PPO retrains PPO and nothing before it.

    python -m tasks.source_closure            compare every stage with dvc.yaml
    python -m tasks.source_closure STAGE ...  print the files of these stages
    python -m tasks.source_closure --write    put the right files into dvc.yaml
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import BadInput

PACKAGE = "rlhf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What dvc.yaml says about the sources of a stage, against what its recipe imports."""

    stage: str
    missing: tuple[str, ...]
    """Imported, but not among `deps`: a change would go unnoticed."""
    extra: tuple[str, ...]
    """Among `deps`, but not imported: a change would retrain for nothing."""


def closure(root: Path, recipe: str) -> tuple[str, ...]:
    """Follow the imports of a recipe inside the package, those inside functions included.

    Imports for the type checker alone are not followed, since they never run; `__init__.py` files are left out,
    because they are empty.

    Args:
        root: folder that holds the package.
        recipe: name of the module under `rlhf/recipes`.

    Returns:
        Paths from the root, sorted.

    Raises:
        BadInput: there is no such recipe.
    """
    start = root / PACKAGE / "recipes" / f"{recipe}.py"
    if not start.is_file():
        raise BadInput(f"{start.relative_to(root)}: no such recipe")
    found: set[Path] = set()
    todo = [start]
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += [path for name in imports(file, root) if (path := _file_of(root, name))]
    return tuple(sorted(str(file.relative_to(root)) for file in found))


def imports(file: Path, root: Path) -> set[str]:
    """List what a file imports from the package, as dotted names; a name may be a module or something in one."""
    here = list(file.relative_to(root).with_suffix("").parts)
    names: set[str] = set()
    for node in _running(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            before = here[: len(here) - node.level] if node.level else []
            module = ".".join([*before, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE}


def compare(root: Path) -> list[Difference]:
    """Compare every stage's `deps` with the closure of its recipe; stages that agree are left out."""
    from tasks.profiles import requests_of_stages

    result = []
    for stage, request in requests_of_stages(root).items():
        listed = {dep for dep in dependencies(root, stage) if dep.startswith(f"{PACKAGE}/")}
        imported = set(closure(root, request.recipe))
        if listed != imported:
            missing, extra = tuple(sorted(imported - listed)), tuple(sorted(listed - imported))
            result.append(Difference(stage=stage, missing=missing, extra=extra))
    return result


def dependencies(root: Path, stage: str) -> list[str]:
    """Read the `deps` of a stage from dvc.yaml."""
    from rlhf.config import read_params

    return [str(dep) for dep in read_params(root / "dvc.yaml")["stages"][stage].get("deps", [])]


def write(root: Path) -> list[str]:
    """Put the right source files into dvc.yaml; other dependencies and all comments elsewhere stay.

    Returns:
        The stages that were changed.
    """
    from rlhf.outputs import atomic_writer
    from tasks.profiles import requests_of_stages
    from tasks.yaml_edit import set_values

    recipes = {stage: request.recipe for stage, request in requests_of_stages(root).items()}
    values = {}
    for difference in compare(root):
        others = [dep for dep in dependencies(root, difference.stage) if not dep.startswith(f"{PACKAGE}/")]
        values[f"stages.{difference.stage}.deps"] = [*others, *closure(root, recipes[difference.stage])]
    text = set_values((root / "dvc.yaml").read_text(encoding="utf-8"), values, file="dvc.yaml")
    with atomic_writer(root / "dvc.yaml") as stream:
        stream.write(text)
    return [key.split(".")[1] for key in values]


def main(words: Sequence[str]) -> int:
    """Run from the command line; returns 1 when dvc.yaml does not agree with the sources."""
    from tasks.profiles import requests_of_stages
    from tasks.settings import project_root

    root = project_root()
    if list(words) == ["--write"]:
        _say(f"{stage}: deps written" for stage in write(root))
        return 0
    if words:
        known = requests_of_stages(root)
        for stage in words:
            if stage not in known:
                raise BadInput(f"no stage {stage!r} in dvc.yaml; there are {', '.join(known)}")
            _say(f"- {path}" for path in closure(root, known[stage].recipe))
        return 0
    differences = compare(root)
    for difference in differences:
        _say(f"{difference.stage}: missing {path}" for path in difference.missing)
        _say(f"{difference.stage}: too much {path}" for path in difference.extra)
    return 1 if differences else 0


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk the nodes of a file, without what stands under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield other
                yield from _running(other)
            continue
        yield node
        yield from _running(node)


def _file_of(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    return path if path.is_file() else None


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BadInput as error:
        sys.exit(str(error))
