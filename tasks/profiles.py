"""Merging a profile into `params.yaml`: only the values that differ are touched, so every comment stays where it is."""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import build, load_section, read_params
from rlhf.errors import BadInput
from tasks.yaml_edit import load, set_values

DEFAULT = "default"
FROM = "from"
"""Optional key of a profile: the name of the profile whose values hold wherever this one says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One setting that a profile changes."""

    key: str
    """Dotted name, such as ppo.kl_coef."""
    old: Any
    """Value in params.yaml now; None also where the key is absent."""
    new: Any
    """Value after the merge."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """A merge that has been checked but not written."""

    profile: str
    """Name of the profile, or its path."""
    changes: tuple[Change, ...]
    """What differs, in the order of params.yaml."""
    text: str
    """The new params.yaml."""
    params: dict[str, Any]
    """The same, read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Launch:
    """The two keys of every section that belong to the launcher and not to the recipe."""

    threads: int
    launch: str

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}, wanted at least 1")
        if not self.launch.strip():
            raise ValueError("launch is empty, wanted `python`, `torchrun ...` or `deepspeed ...`")


def names(root: Path) -> list[str]:
    """List the profiles of a project: `tiny`, `algorithms/grpo`, ..."""
    folder = root / "profiles"
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def locate(root: Path, profile: str) -> Path:
    """Find the file of a profile.

    Args:
        root: the project.
        profile: a name under `profiles/` without its ending, or the path of a YAML file.

    Raises:
        BadInput: there is no such profile; the nearest name is suggested.
    """
    named = root / "profiles" / f"{profile}.yaml"
    if named.is_file():
        return named
    path = Path(profile).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    known = names(root)
    near = difflib.get_close_matches(profile, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
    raise BadInput(f"no profile {profile!r} in profiles/ and no YAML file of that name; {hint}")


def merge(root: Path, profile: str) -> Merge:
    """Merge a profile into the project's params.yaml, in memory.

    Args:
        root: the project.
        profile: see `locate`.

    Returns:
        The differences and the new text, in which everything but the changed values is as it was.

    Raises:
        BadInput: no such profile, an unknown key, or a value that the stage's settings refuse.
    """
    path = locate(root, profile)
    values, whole = _values(root, path)
    params_file = root / "params.yaml"
    default_text = (root / "profiles" / f"{DEFAULT}.yaml").read_text(encoding="utf-8")
    default = read_params(root / "profiles" / f"{DEFAULT}.yaml")
    _refuse_unknown(values, default, path.name)
    try:
        current = read_params(params_file)
    except BadInput:
        if not whole:
            raise
        current = {}
    # A profile that states every value also heals a file that has lost keys or gained wrong ones.
    text = default_text if whole and _keys(current) != _keys(default) else params_file.read_text(encoding="utf-8")
    new_text = set_values(text, _flat(values), file="params.yaml")
    params: dict[str, Any] = load(new_text, file="params.yaml")
    check(root, params, file=f"params.yaml with {path.name}")
    before, after = _flat(current), _flat(params)
    changes = [
        Change(key=key, old=before.get(key), new=after.get(key))
        for key in [*after, *(k for k in before if k not in after)]
        if key not in before or key not in after or not _same(before[key], after[key])
    ]
    return Merge(profile=profile, changes=tuple(changes), text=new_text, params=params)


def check(root: Path, params: Mapping[str, Any], *, file: str = "params.yaml") -> None:
    """Load every stage's section through the settings of its recipe.

    Args:
        root: the project, whose dvc.yaml names the stages and their recipes.
        params: the whole parameter file, read.
        file: what messages call it.

    Raises:
        BadInput: a section or key is unknown or missing, or a value has the wrong type or is out of range.
    """
    recipes = recipe_of_stage(root)
    for key in params:
        if key != "seed" and key not in recipes:
            near = difflib.get_close_matches(str(key), ["seed", *recipes], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; the sections are {', '.join(recipes)}"
            raise BadInput(f"{file}: unknown section {key}{hint}")
    seed = params.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise BadInput(f"{file}: seed is {seed!r}, wanted a whole number from 0")
    for stage, recipe in recipes.items():
        load_section(params, stage, importlib.import_module(f"rlhf.recipes.{recipe}").Config, file=file)
        section = params[stage]
        launch = {key: section[key] for key in ("threads", "launch") if key in section}
        build(_Launch, launch, where=f"{file}: ", prefix=f"{stage}.")


def recipe_of_stage(root: Path) -> dict[str, str]:
    """Read from dvc.yaml which recipe every stage runs: `python -m rlhf.launch STAGE [--recipe R]`.

    Returns:
        Stage name to recipe name, in the order of dvc.yaml.

    Raises:
        BadInput: a stage's command is not one of ours.
    """
    recipes = {}
    for stage, block in read_params(root / "dvc.yaml").get("stages", {}).items():
        words = shlex.split(str(block["cmd"]).replace("\\\n", " "))
        if "rlhf.launch" not in words:
            raise BadInput(f"dvc.yaml: the command of {stage} is {block['cmd']!r}, wanted `exec python -m rlhf.launch ...`")
        recipes[stage] = words[words.index("--recipe") + 1] if "--recipe" in words else stage
    return recipes


def _values(root: Path, path: Path) -> tuple[dict[str, Any], bool]:
    """Read a profile and those it builds on; tell whether together they state every value."""
    values = read_params(path)
    whole = path == root / "profiles" / f"{DEFAULT}.yaml"
    seen = [path]
    while FROM in values:
        base = locate(root, str(values.pop(FROM)))
        if base in seen:
            raise BadInput(f"{path.name}: its `from` leads back to {base.name}; remove one of them")
        seen.append(base)
        whole = base == root / "profiles" / f"{DEFAULT}.yaml"
        values = _overlay(read_params(base), values)
    return values, whole


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the sections of one file over another's, key by key within a section."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def _refuse_unknown(values: Mapping[str, Any], default: Mapping[str, Any], file: str) -> None:
    known = list(_flat(default))
    for key, value in _flat(values).items():
        if key in known:
            continue
        if key in default:
            raise BadInput(f"{file}: {key} is {value!r}, wanted a section with keys of its own")
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the sections are {', '.join(default)}"
        raise BadInput(f"{file}: unknown key {key}; {hint}")


def _flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Name every value `section.key`; what lies deeper is one value."""
    flat: dict[str, Any] = {}
    for section, value in params.items():
        if isinstance(value, Mapping):
            flat.update({f"{section}.{key}": inner for key, inner in value.items()})
        else:
            flat[str(section)] = value
    return flat


def _keys(params: Mapping[str, Any]) -> set[str]:
    return set(_flat(params))


def _same(old: Any, new: Any) -> bool:
    # 1 and 1.0 are equal in Python but not to DVC, which would retrain.
    return bool(old == new) and type(old) is type(new)

