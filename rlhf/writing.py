"""Writes that fail say which file they were for, whoever did the writing."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM_ERROR = re.compile(r"os error (\d+)")
"""How libraries in Rust (safetensors, tokenizers) end the text of what the system refused."""


@contextmanager
def writing(path: Path, *, through: Path | None = None) -> Iterator[None]:
    """Give the errors of a block the path that it writes to.

    The system's refusal of a write names no file (that of opening one does), and some libraries pass it on as text
    alone. Without the path nobody knows which disk is full.

    Args:
        path: a file or folder.
        through: where it is written first; an error about that place is told as one about `path`.

    Raises:
        OSError: what the system refused, with a path in `filename`.
    """
    try:
        yield
    except OSError as error:
        hidden = through is not None and str(error.filename).startswith(str(through))
        if error.errno is None or (error.filename is not None and not hidden):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        if (found := SYSTEM_ERROR.search(str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
