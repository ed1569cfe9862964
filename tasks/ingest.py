"""Bringing data and base models into the project: checked first, copied in whole or not at all, then given to DVC.

What is brought in keeps its form; `validate` reads it as it is. A second ingest under the same name is a new version.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.config import read_params
from rlhf.data.contracts import Limits, check
from rlhf.data.detect import detect
from rlhf.data.intake import Refused, Row, read
from rlhf.data.raw_files import SUFFIXES, files_in
from rlhf.data.records import shorten
from rlhf.errors import BadInput
from tasks.tracked_copy import bring_in

CHUNK = 5000
"""Rows that go through the contracts together."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
GENERATED = "support_desk"
"""A name that belongs to the stage `generate`."""
MODEL_FILES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")
"""What is copied of a model: weights, configuration, tokenizer, licence; no code and no pickles."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataReport:
    """What an ingest of data found and did."""

    name: str
    """As `validate.files` names it, relative to data/raw."""
    status: str
    """added, replaced (a new version) or unchanged."""
    format: str
    """The format of each file, in order; once when all have the same."""
    why: str
    """Why the first file was read in that format."""
    rows: dict[str, int]
    """Records by kind."""
    refused: int
    """Rows that cannot be used; `validate` will list them."""
    example: str | None
    """The first of them: place, field and reason."""
    sample: dict[str, Any]
    """The first record, in canonical form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReport:
    """What an ingest of a base model found and did."""

    name: str
    """As `sft.base_model` names it: the folder below data/base."""
    status: str
    """added, replaced or unchanged."""
    architecture: str
    """The model's class, from its configuration."""
    tensors: int
    """Weights found."""
    left_out: list[str]
    """Files that were not copied."""


def ingest_data(root: Path, files: Sequence[Path], *, name: str | None, format: str | None) -> DataReport:
    """Copy data files to data/raw and track them.

    Args:
        root: the project.
        files: one or more files, or folders of files.
        name: what to call them; by default the name of the one file or folder. Several files become a folder.
        format: a key of `rlhf.data.readers.READERS`, or None to detect it.

    Returns:
        What was found and done.

    Raises:
        BadInput: a file cannot be read as any known format, or the name is not free.
        StageFailed: DVC could not track the copy; what was there before is back in place.
    """
    if whole := next((path for path in files if root.resolve().is_relative_to(path.resolve())), None):
        raise BadInput(f"{whole}: holds this project itself; name a folder of data")
    sources = _data_files(files)
    folder = len(sources) > 1 or files[0].is_dir()
    stem = checked_name(name if name is not None else files[0].name, data=True)
    report = _inspect(sources, format, _limits(root))
    target = root / "data" / "raw" / (stem if folder else stem + _suffix(sources[0]))
    other_forms = {stem, *(stem + suffix for suffix in SUFFIXES)} - {target.name}
    taken = next((form for form in sorted(other_forms) if (target.parent / form).exists()), None)
    if taken:
        raise BadInput(
            f"data/raw/{taken} is there already and {target.name} would be a second thing of that name; choose "
            "another --as, or give the new version in the same form"
        )
    for source in sources if folder else ():
        if not source.name.isprintable() or source.name.startswith((".", "-")):
            raise BadInput(f"{source}: has a name on which commands trip (. or - first, or odd signs); rename it")
    copies = {(f"{source.stem.split('.')[0]}{_suffix(source)}" if folder else ""): source for source in sources}
    if len(copies) < len(sources):
        raise BadInput("two of the files have the same name; rename one, or ingest them under different names")
    status = bring_in(root, copies, target)
    return DataReport(name=f"{target.name}/" if folder else target.name, status=status, **report)


def ingest_model(root: Path, folder: Path, *, name: str) -> ModelReport:
    """Copy a base model to data/base and track it.

    Args:
        root: the project.
        folder: a Hugging Face model folder: config.json, a tokenizer and safetensors weights.
        name: what to call it.

    Returns:
        What was found and done.

    Raises:
        BadInput: the folder lacks something, holds weights only as pickles, or cannot be read.
        StageFailed: DVC could not track the copy; what was there before is back in place.
    """
    checked = checked_name(name, data=False)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give a Hugging Face model folder")
    refuse_links_out(folder)
    present = sorted(path for path in folder.iterdir() if path.is_file())
    copied = {path.name: path for path in present if path.suffix in MODEL_FILES}
    tensors = _count_tensors(folder, [path for path in present if path.suffix == ".safetensors"])
    architecture = _architecture(folder)
    _require_tokenizer(folder)
    status = bring_in(root, copied, root / "data" / "base" / checked)
    left_out = [path.name for path in sorted(folder.iterdir()) if path.name not in copied]
    return ModelReport(name=checked, status=status, architecture=architecture, tensors=tensors, left_out=left_out)


def _data_files(files: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in files:
        if not path.exists():
            raise BadInput(f"{path}: no such file; check the path")
        if not path.is_dir() and not path.is_file():
            raise BadInput(f"{path}: is a pipe or a device, not a file; write what it gives into a file first")
        refuse_links_out(path)
        inside = files_in(path)
        if not inside:
            raise BadInput(f"{path}: holds no data files; wanted {', '.join(SUFFIXES)}")
        found += inside
    if not found:
        raise BadInput("no file was given; name at least one")
    return found


def refuse_links_out(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it: the copy would hold what nobody meant to bring in.

    A cache of the Hugging Face hub is made of links to files of its own, which may be followed.

    Args:
        folder: of data or of a model; a single file is what somebody named, and may be a link.

    Raises:
        BadInput: naming the link.
    """
    inside = folder.resolve()
    blobs = inside.parents[1] / "blobs" if inside.parent.name == "snapshots" else inside
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        target = Path(os.path.realpath(path))
        if path.is_symlink() and not (target.is_relative_to(inside) or target.is_relative_to(blobs)):
            raise BadInput(f"{path}: is a link that leads out of {folder}; put a copy of the file in its place")


def checked_name(name: str, *, data: bool) -> str:
    """A name without data suffixes, if it is one that is safe in paths, parameters and registries.

    Raises:
        BadInput: it is not, or it is taken by the generated data.
    """
    for suffix in sorted(SUFFIXES, key=len, reverse=True) if data else ():
        name = name.removesuffix(suffix)
    if not NAME.fullmatch(name) or name.endswith(".dvc"):
        raise BadInput(
            f"{name!r} is not a usable name; wanted small letters, digits, '.', '_' and '-', at most 100, a letter or "
            "digit first (give one with --as)"
        )
    if data and name == GENERATED:
        raise BadInput(f"{GENERATED!r} is the name of the generated data; choose another with --as")
    return name


def _suffix(path: Path) -> str:
    """The suffix by which the file will be known: its own when it is one of `SUFFIXES`, else by what is inside."""
    own = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.endswith(suffix)), None)
    if own:
        return own
    with path.open("rb") as stream:
        return ".jsonl.gz" if stream.read(2) == b"\x1f\x8b" else ".jsonl"


def _limits(root: Path) -> Limits:
    """The sizes that `validate` will allow; none where the settings do not say."""
    params = root / "params.yaml"
    section = read_params(params).get("validate") if params.is_file() else None
    found = section if isinstance(section, dict) else {}
    longest = [found.get(name) for name in ("max_prompt_chars", "max_response_chars")]
    prompt, response = (value if isinstance(value, int) else sys.maxsize for value in longest)
    return Limits(prompt_chars=prompt, response_chars=response)


def _inspect(sources: Sequence[Path], forced: str | None, limits: Limits) -> dict[str, Any]:
    """Read every row once, as `validate` will: the fields of a DataReport that depend on the content."""
    rows: Counter[str] = Counter()
    refused: list[Refused] = []
    sample: dict[str, Any] = {}
    detected = [detect(source, forced) for source in sources]
    for source, one in zip(sources, detected, strict=True):
        stream = read(source, source.name, one)
        while chunk := list(islice(stream, CHUNK)):
            refused += [found for found in chunk if isinstance(found, Refused)]
            good, failures = check([found for found in chunk if isinstance(found, Row)], limits)
            refused += failures
            rows.update(row.kind for row in good)
            sample = sample or (good[0].record if good else {})
    refused.sort(key=lambda failure: (failure.file, failure.line))
    if not rows:
        worst, count = Counter(f"{failure.field}: {failure.reason}" for failure in refused).most_common(1)[0]
        raise BadInput(
            f"{sources[0]}: `validate` would refuse every row, most often ({count} times) because of {worst}; "
            "mend the rows and bring the file in again"
        )
    first = refused[0] if refused else None
    return {
        "format": ", ".join(dict.fromkeys(one.format for one in detected)),
        "why": detected[0].why,
        "rows": dict(sorted(rows.items())),
        "refused": len({(failure.file, failure.line) for failure in refused}),
        "example": f"{first.file}:{first.line} {first.field}: {first.reason}" if first else None,
        "sample": sample,
    }


def _count_tensors(folder: Path, shards: Sequence[Path]) -> int:
    from safetensors import SafetensorError, safe_open

    if not shards:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise BadInput(
                f"{folder}: has its weights in {pickles[0]}, a pickle, which can run code when it is loaded; save the "
                "model with safe_serialization=True and bring in that folder"
            )
        raise BadInput(f"{folder}: has no weights (*.safetensors); give the folder of a whole model")
    tensors = 0
    for shard in shards:
        try:
            with safe_open(shard, framework="numpy") as stream:
                tensors += len(stream.keys())
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{shard}: is not a whole safetensors file ({error}); copy it again") from error
    return tensors


def _require_tokenizer(folder: Path) -> None:
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise BadInput(
            f"{folder}: has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); save it there, too"
        )
    from rlhf.tokenizer import load_tokenizer

    try:
        load_tokenizer(folder)
    except BadInput:
        raise
    except Exception as error:  # the parser of tokenizer.json raises no narrower class
        raise BadInput(f"{folder}: its tokenizer cannot be loaded ({_reason(error)}); save it again") from error


def _architecture(folder: Path) -> str:
    """The model's class, after its configuration has been loaded without running any code of its own."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: has no config.json; give a Hugging Face model folder")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # every model family checks its settings in its own way
        raise BadInput(
            f"{folder}: its config.json cannot be used ({_reason(error)}); wanted a model that transformers knows"
        ) from error
    return str((config.architectures or [type(config).__name__])[0])


def _reason(error: Exception) -> str:
    """What an exception says, as part of a sentence."""
    return shorten(" ".join(str(error).split()).rstrip(".")).partition("<class")[0] or type(error).__name__
