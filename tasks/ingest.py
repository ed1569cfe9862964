"""Bringing data and base models into the project: checked first, copied in whole or not at all, then given to DVC.

What is brought in keeps its form; `validate` reads it as it is. A second ingest under the same name is a new version.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.detect import detect
from rlhf.data.intake import Refused, read
from rlhf.data.raw_files import SUFFIXES, files_in
from rlhf.errors import BadInput
from tasks.tracked_copy import bring_in

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
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
    """Rows that cannot be read; `validate` will list them."""
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
    sources = _data_files(files)
    folder = len(sources) > 1 or files[0].is_dir()
    stem = _checked_name(name if name is not None else files[0].name, data=True)
    report = _inspect(sources, format)
    target = root / "data" / "raw" / (stem if folder else stem + _suffix(sources[0]))
    other_forms = {stem, *(stem + suffix for suffix in SUFFIXES)} - {target.name}
    taken = next((form for form in sorted(other_forms) if (target.parent / form).exists()), None)
    if taken:
        raise BadInput(
            f"data/raw/{taken} is there already and {target.name} would be a second thing of that name; choose "
            "another --as, or give the new version in the same form"
        )
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
    checked = _checked_name(name, data=False)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give a Hugging Face model folder")
    present = sorted(path for path in folder.iterdir() if path.is_file())
    copied = {path.name: path for path in present if path.suffix in MODEL_FILES}
    tensors = _count_tensors(folder, [path for path in present if path.suffix == ".safetensors"])
    _require_tokenizer(folder)
    architecture = _architecture(folder)
    status = bring_in(root, copied, root / "data" / "base" / checked)
    left_out = [path.name for path in sorted(folder.iterdir()) if path.name not in copied]
    return ModelReport(name=checked, status=status, architecture=architecture, tensors=tensors, left_out=left_out)


def _data_files(files: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in files:
        if not path.exists():
            raise BadInput(f"{path}: no such file; check the path")
        inside = files_in(path)
        if not inside:
            raise BadInput(f"{path}: holds no data files; wanted {', '.join(SUFFIXES)}")
        found += inside
    if not found:
        raise BadInput("no file was given; name at least one")
    return found


def _checked_name(name: str, *, data: bool) -> str:
    """A name without data suffixes, if it is one that is safe in paths, parameters and registries."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True) if data else ():
        name = name.removesuffix(suffix)
    if not NAME.fullmatch(name) or name.endswith(".dvc"):
        raise BadInput(
            f"{name!r} is not a usable name; wanted small letters, digits, '.', '_' and '-' (give one with --as)"
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


def _inspect(sources: Sequence[Path], forced: str | None) -> dict[str, Any]:
    """Read every row once: the fields of a DataReport that depend on the content."""
    rows: Counter[str] = Counter()
    refused: list[Refused] = []
    sample: dict[str, Any] = {}
    detected = [detect(source, forced) for source in sources]
    for source, one in zip(sources, detected, strict=True):
        for found in read(source, source.name, one):
            if isinstance(found, Refused):
                refused.append(found)
            else:
                rows[found.kind] += 1
                sample = sample or found.record
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


def _architecture(folder: Path) -> str:
    """The model's class, after its configuration has been loaded without running any code of its own."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: has no config.json; give a Hugging Face model folder")
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"{folder}: its config.json cannot be used ({reason}); wanted a model that transformers knows"
        ) from error
    return str((config.architectures or [type(config).__name__])[0])
