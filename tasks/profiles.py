"""Merging a profile into `params.yaml`: only the values that differ are touched, so every comment stays where it is."""

from __future__ import annotations

import difflib
import importlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config import load_section, read_params
from rlhf.errors import BadInput
from rlhf.launch import Request, launch_settings, parse
from tasks.param_safety import refuse_secrets, require_pinned
from tasks.yaml_edit import load, set_values

DEFAULT = "default"
SCRATCH = "scratch"
METHODS = "profiles/algorithms/"
GENERATED = "support_desk/"
"""Files under data/raw that the stage `generate` writes."""
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
    """Names of the profiles, or their paths, with a gap between them."""
    changes: tuple[Change, ...]
    """What differs, in the order of params.yaml."""
    text: str
    """The new params.yaml."""
    params: dict[str, Any]
    """The same, read."""


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
    whole = [name for name in known if "/" not in name]
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(whole) or 'none'}, and methods in {METHODS}"
    raise BadInput(f"no profile {profile!r} in profiles/ and no YAML file of that name; {hint}")


def merge(root: Path, *profiles: str) -> Merge:
    """Merge a profile, or several of which a later one goes first, into the project's params.yaml, in memory.

    Args:
        root: the project.
        profiles: at least one, see `locate`. What they build on lies below all of them: `tiny algorithms/grpo` is
            the tiny profile with what makes GRPO.

    Returns:
        The differences and the new text, in which everything but the changed values is as it was.

    Raises:
        BadInput: no such profile, an unknown key, or a value that the stage's settings refuse.
    """
    paths = [locate(root, profile) for profile in profiles]
    values, whole = _values(root, paths)
    file = " and ".join(path.name for path in paths)
    params_file = root / "params.yaml"
    default = read_params(root / "profiles" / f"{DEFAULT}.yaml")
    default_text = (root / "profiles" / f"{DEFAULT}.yaml").read_text(encoding="utf-8")
    _refuse_unknown(values, default, file)
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
    check(root, params, file=f"params.yaml with {file}")
    return Merge(profile=" ".join(profiles), changes=_differences(current, params), text=new_text, params=params)


def changes(params_file: Path, text: str) -> tuple[Change, ...]:
    """List what differs between a parameter file and a text that may replace it."""
    return _differences(read_params(params_file), load(text, file=params_file.name))


def waiting_files(root: Path, params: Mapping[str, Any]) -> list[str]:
    """Name what the settings need and the project has not got yet, each with the command that brings it."""
    flat = _flat(params)
    missing = []
    for file in flat.get("validate.files", ()):
        if not str(file).startswith(GENERATED) and not any((root / "data" / "raw").glob(str(file))):
            missing.append(f"data/raw/{file}; bring it with `ratchet ingest FILE --as {Path(file).name.split('.')[0]}`")
    base = str(flat.get("sft.base_model", SCRATCH))
    # A name with an owner is one of the Hugging Face hub; any other is a folder in data/base.
    if base != SCRATCH and "/" not in base and not (root / "data" / "base" / base).is_dir():
        missing.append(f"data/base/{base}; bring it with `ratchet ingest --model FOLDER --as {base}`")
    return missing


def check(root: Path, params: Mapping[str, Any], *, file: str = "params.yaml") -> None:
    """Load every stage's section through the settings of its recipe.

    Args:
        root: the project, whose dvc.yaml names the stages and their recipes.
        params: the whole parameter file, read.
        file: what messages call it.

    Raises:
        BadInput: a section or key is unknown or missing, or a value has the wrong type or is out of range.
    """
    refuse_secrets(params, file)
    requests = requests_of_stages(root)
    for key in params:
        if key != "seed" and key not in requests:
            near = difflib.get_close_matches(str(key), ["seed", *requests], n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; the sections are {', '.join(requests)}"
            raise BadInput(f"{file}: unknown section {key}{hint}")
    seed = params.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise BadInput(f"{file}: seed is {seed!r}, wanted a whole number from 0")
    for stage, request in requests.items():
        launch_settings(params, stage)
        section = {**params[stage], **{field: _lookup(params, key, file) for field, key in request.borrowed.items()}}
        recipe = importlib.import_module(f"rlhf.recipes.{request.recipe}")
        load_section({stage: section}, stage, recipe.Config, file=file)
    if isinstance(base := params.get("sft"), Mapping) and "base_model" in base:
        require_pinned(str(base["base_model"]), base.get("revision"), file)


def requests_of_stages(root: Path) -> dict[str, Request]:
    """Read from dvc.yaml what every stage asks of `python -m rlhf.launch`.

    Returns:
        Stage name to its recipe, paths and borrowed settings, in the order of dvc.yaml.

    Raises:
        BadInput: a stage's command is not one of ours.
    """
    requests = {}
    stages = read_params(root / "dvc.yaml").get("stages", {})
    for stage, block in stages.items() if isinstance(stages, Mapping) else ():
        if not isinstance(block, Mapping) or "cmd" not in block:
            raise BadInput(f"dvc.yaml: {stage} has no cmd; `git checkout` the file, or give the stage its command")
        words = shlex.split(str(block["cmd"]).replace("\\\n", " "))
        if "rlhf.launch" not in words:
            raise BadInput(f"dvc.yaml: {stage} runs {block['cmd']!r}, wanted `exec python -m rlhf.launch ...`")
        requests[stage] = parse(words[words.index("rlhf.launch") + 1 :])
    return requests


def _lookup(params: Mapping[str, Any], key: str, file: str) -> Any:
    flat = _flat(params)
    if key not in flat and key not in params:
        raise BadInput(f"{file}: missing key {key}, which another stage takes a setting from; add it")
    return flat.get(key, params.get(key))


def _values(root: Path, paths: Sequence[Path]) -> tuple[dict[str, Any], bool]:
    """Read profiles and those they build on, later ones on top; tell whether together they state every value."""
    layers: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        top, *below = _chain(root, path)
        laid = [file for file, _ in layers]
        layers = [*(layer for layer in reversed(below) if layer[0] not in laid), *layers, top]
    values: dict[str, Any] = {}
    for _, own in layers:
        values = _overlay(values, own)
    return values, root / "profiles" / f"{DEFAULT}.yaml" in [file for file, _ in layers]


def _chain(root: Path, path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """A profile and those it builds on, itself first, each with what it says of its own."""
    chain = [(path, read_params(path))]
    while FROM in chain[-1][1]:
        base = locate(root, str(chain[-1][1].pop(FROM)))
        if base in [file for file, _ in chain]:
            raise BadInput(f"{path.name}: its `from` leads back to {base.name}; remove one of them")
        chain.append((base, read_params(base)))
    return chain


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


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    old, new = _flat(before), _flat(after)
    return tuple(
        Change(key=key, old=old.get(key), new=new.get(key))
        for key in [*new, *(key for key in old if key not in new)]
        if key not in old or key not in new or not _same(old[key], new[key])
    )


def _keys(params: Mapping[str, Any]) -> set[str]:
    return set(_flat(params))


def _same(old: Any, new: Any) -> bool:
    # 1 and 1.0 are equal in Python but not to DVC, which would retrain.
    return bool(old == new) and type(old) is type(new)
