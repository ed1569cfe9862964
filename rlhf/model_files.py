"""What a model folder may hold: a config and safetensors, no pickle, and no link that leads elsewhere."""

import os
import pickletools
import re
import zipfile
from itertools import islice
from pathlib import Path

from rlhf.errors import BadInput

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Names under which models and what belongs to them are pickled."""
STORED_BY_HASH = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""A file in a DVC cache, which may lie outside the project and be linked into it."""
OPERATIONS = 50
"""A file that can be read as so many operations of a pickle is one."""


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that is not a model, that holds a pickle, or links to files outside of it.

    Raises:
        BadInput: naming what is absent or has to go.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such model folder; add one with `ratchet ingest --model DIR --as NAME`")
    refuse_traps(folder)
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no config.json in this model folder; wanted a folder in Hugging Face format")
    if not any(folder.glob("*.safetensors")):
        raise BadInput(f"{folder}: no weights; wanted model.safetensors, so save the model with safe serialization")


def refuse_traps(folder: Path) -> None:
    """Refuse a folder with a pickle in it, or with a link that leads elsewhere.

    Raises:
        BadInput: naming the file.
    """
    for file in sorted(folder.rglob("*")):
        if file.is_symlink() and not _leads_nowhere_else(file, folder):
            raise BadInput(
                f"{file}: a link to {file.readlink()}, outside of this model folder and of the project; put a copy of "
                "the file in its place"
            )
        if file.suffix in PICKLE_SUFFIXES and file.is_file() and is_pickle(file):
            raise BadInput(
                f"{file}: a pickle, which may run code when it is read; delete it if model.safetensors holds the "
                "weights, else save the model with safe serialization"
            )


def _leads_nowhere_else(link: Path, folder: Path) -> bool:
    """Whether a link ends in its folder, in the project, or in the store behind a cache of the hub or of DVC."""
    target, inside = Path(os.path.realpath(link)), folder.resolve()  # a link to itself is no error here
    places = [inside, Path.cwd()]
    if inside.parent.name == "snapshots":  # of the Hugging Face hub: models--NAME/snapshots/REVISION
        places.append(inside.parents[1] / "blobs")
    return any(target.is_relative_to(place) for place in places) or bool(STORED_BY_HASH.search(target.as_posix()))


def is_pickle(file: Path) -> bool:
    """Whether a file is a pickle or an archive with one in it; nothing in it is run.

    Args:
        file: readable.
    """
    with file.open("rb") as stream:
        start = stream.read(2)
        # Protocol 2 and later begin with their number; everything that torch, joblib and pickle write by default.
        if len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5:
            return True
        if zipfile.is_zipfile(stream):
            return _holds_pickle(file)
        stream.seek(0)
        try:
            operations = [operation.name for operation, _, _ in islice(pickletools.genops(stream), OPERATIONS)]
        except (ValueError, UnicodeError, MemoryError, OverflowError):
            return _is_tar(file)
    return len(operations) == OPERATIONS or operations[-1:] == ["STOP"]


def _holds_pickle(archive: Path) -> bool:
    with zipfile.ZipFile(archive) as inside:
        return any(Path(name).suffix in PICKLE_SUFFIXES for name in inside.namelist())


def _is_tar(file: Path) -> bool:
    """Whether a file is a tar archive, as torch wrote them before version 0.1.10, with pickles in it."""
    with file.open("rb") as stream:
        stream.seek(257)
        return stream.read(5) == b"ustar"
