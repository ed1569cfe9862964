"""The raw files: finding them, and reading their rows one at a time, whatever is wrong with them.

JSON lines are streamed; a JSON array has to be read whole. Either may be gzipped. A fault that makes a file useless is
a BadInput; a fault in one row is a RowError in that row's place, so that the rows around it are kept.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from rlhf.data.records import RowError
from rlhf.errors import BadInput

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
HEAD = 1 << 16
"""Bytes at the beginning of a file that decide what it is."""

DEEPEST = 100
"""Lists and objects inside each other that a row may have; parsers and writers give up somewhere beyond."""
TOO_DEEP = "nested too deeply"

Numbered: TypeAlias = tuple[int, dict[str, Any] | RowError]
Unread: TypeAlias = tuple[int, Any]
"""A row's number, and a line of bytes or an item of a JSON array."""


def find_files(raw: Path, names: tuple[str, ...]) -> list[tuple[str, Path]]:
    """The raw files that a list of names means.

    Args:
        raw: the folder of raw data.
        names: files, folders or glob patterns, relative to `raw`.

    Returns:
        (name relative to `raw`, path) in the order of the list, each file once; inside folders sorted by name.

    Raises:
        BadInput: the list is empty, a name leads out of `raw`, or nothing has that name.
    """
    if not names:
        raise BadInput(f"params.yaml: validate.files is empty; name at least one file in {raw} ({_inventory(raw)})")
    found: dict[str, Path] = {}
    for name in names:
        parts = Path(name).parts
        if (
            not name.strip()
            or not name.isprintable()
            or any(part.startswith((".", "-")) for part in parts if part != "..")
        ):
            raise BadInput(
                f"params.yaml: validate.files names {name!r}, wanted names that do not begin with . or -; rename it"
            )
        if Path(name).is_absolute() or ".." in parts:
            raise BadInput(
                f"params.yaml: validate.files names {name!r}, which leads out of {raw}; "
                "bring the file in with `ratchet ingest FILE --as NAME`"
            )
        matches = sorted(raw.glob(name)) if any(sign in name for sign in "*?[") else [raw / name]
        paths = [path for match in matches if match.exists() for path in files_in(match)]
        if not paths:
            raise BadInput(_nothing_there(raw, name))
        for path in paths:
            if not path.resolve().is_relative_to(raw.resolve()):
                raise BadInput(f"{path} is a link that leads out of {raw}; copy the file in with `ratchet ingest`")
            found[path.relative_to(raw).as_posix()] = path
    return list(found.items())


def files_in(path: Path) -> list[Path]:
    """A file itself, or the files of known suffixes anywhere below a folder, sorted; hidden ones are left out."""
    if not path.is_dir():
        return [path]
    below = sorted(child for child in path.rglob("*") if child.name.endswith(SUFFIXES) and child.is_file())
    return [child for child in below if not any(part.startswith(".") for part in child.relative_to(path).parts)]


def rows(path: Path) -> Iterator[Numbered]:
    """Read a file row by row.

    Yields:
        (number, row): the line's number, from 1, or the place in a JSON array; the row is an object or what is wrong
        with it. Blank lines are passed over.

    Raises:
        BadInput: see `unread`.
    """
    return parsed(unread(path))


def unread(path: Path) -> Iterator[Unread]:
    """The rows of a file before they are looked at, for `parsed`, which may be called in another process.

    Raises:
        BadInput: the file is missing, empty, unreadable, not text, in another encoding, or one broken JSON document.
    """
    with closing(_open(path)) as stream:
        try:
            head = stream.read(HEAD)
            _refuse_other_than_text(path, head)
            stream.seek(0)
            if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
                yield from _array(path, stream.read())
                return
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise BadInput(f"{path}: not a whole gzip file ({error}); copy it again") from error


def parsed(found: Iterable[Unread]) -> Iterator[Numbered]:
    """Rows as objects, or what is wrong with them."""
    parser = _Parser()
    return ((number, parser.row(row) if isinstance(row, bytes) else _checked(row)) for number, row in found)


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: is a folder, a pipe or a device; wanted a file of rows")
        stream = path.open("rb")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check its name and rights") from error
    if stream.read(2) == b"\x1f\x8b":
        stream.close()
        return gzip.open(path, "rb")
    stream.seek(0)
    return stream


def _refuse_other_than_text(path: Path, head: bytes) -> None:
    if not head.strip():
        raise BadInput(f"{path}: is empty; wanted rows of JSON")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput(f"{path}: is UTF-16 text; save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8`")
    if b"\0" in head:
        raise BadInput(f"{path}: is a binary file (byte {head.index(0)} is zero); wanted JSON in UTF-8 text")


def _array(path: Path, content: bytes) -> Iterator[Unread]:
    try:
        items = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{path}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise BadInput(
            f"{path}:{error.lineno}: broken JSON ({error.msg}, column {error.colno}), so no row of the array can be "
            "read; mend it, or store one object a line"
        ) from error
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{path}: JSON that cannot be read ({_first_line(error)}); mend it, or store one object a line, so that "
            "only such rows are refused"
        ) from error
    if not items:
        raise BadInput(f"{path}: is an empty JSON array; wanted rows")
    yield from enumerate(items, start=1)


class _Repeated(dict[str, Any]):
    """An object in which a key stood twice: the parser would keep the last value and say nothing."""


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(items)
    return built if len(built) == len(items) else _Repeated(built)


class _Parser:
    """Reads lines as `json.loads` does, without making a decoder for each, and notices a key that stands twice."""

    def __init__(self) -> None:
        self._repeats = False
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def row(self, line: bytes) -> dict[str, Any] | RowError:
        """The object in a line, or what is wrong with it."""
        try:
            text = line.decode()
            if text.startswith("\ufeff"):  # json.loads says that it does not belong there
                return _checked(json.loads(text))
            item = self._decoder.decode(text)
        except UnicodeDecodeError as error:
            return RowError("row", f"byte 0x{line[error.start]:02x} in {line.decode(errors='replace')}", "not UTF-8")
        except json.JSONDecodeError as error:
            return RowError("row", f"{error.msg}, column {error.colno}: {line.decode().strip()}", "broken JSON")
        except (ValueError, RecursionError) as error:
            return RowError("row", f"{_first_line(error)}: {line.decode().strip()}", "JSON that cannot be read")
        if self._repeats or not isinstance(item, dict) or line.count(b"[") + line.count(b"{") > DEEPEST:
            self._repeats = False
            return _checked(item)
        return item

    def _object(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        built = dict(items)
        if len(built) == len(items):
            return built
        self._repeats = True
        return _Repeated(built)


def _checked(item: Any) -> dict[str, Any] | RowError:
    if not isinstance(item, dict):
        return RowError("row", item, "not a JSON object")
    fault = _fault(item)
    # What is nested too deeply to be checked cannot be shown either.
    return item if fault is None else RowError("row", list(item) if fault == TOO_DEEP else dict(item), fault)


def _fault(item: dict[str, Any]) -> str | None:
    """What is wrong with the shape of an object; looked for without recursion, which has a limit of its own."""
    level: list[Any] = [item]
    for _ in range(DEEPEST):
        if any(isinstance(value, _Repeated) for value in level):
            return "a key stands twice"
        inside = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for values in inside for value in values if isinstance(value, (dict, list))]
        if not level:
            return None
    return TOO_DEEP


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    return "a whole number of thousands of digits" if "digits" in str(error) else str(error).splitlines()[0]


def _nothing_there(raw: Path, name: str) -> str:
    return (
        f"params.yaml: validate.files names {name!r}, but {raw} has no such file ({_inventory(raw)}); "
        f"add it with `ratchet ingest FILE --as {Path(name).name.split('.')[0] or 'NAME'}`"
    )


def _inventory(raw: Path) -> str:
    names = [
        f"{child.name}/" if child.is_dir() else child.name
        for child in sorted(raw.iterdir() if raw.is_dir() else [])
        if child.is_dir() or child.name.endswith(SUFFIXES)
    ]
    return f"it holds {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}" if names else "it holds no data"
