"""Ways to break a document: wrong values in a tree of objects, wrong text, wrong bytes; by a given random stream."""

import copy
import gzip
import json
import random
from collections.abc import Callable
from typing import Any

RAW = {
    "@RAW:deep@": "[" * 3000 + "]" * 3000,
    "@RAW:bearable@": '{"a":[' * 300 + "]}" * 300,
    "@RAW:barely@": "[" * 960 + "]" * 960,
    "@RAW:deeper@": '{"a":' * 150_000 + "1" + "}" * 150_000,
    "@RAW:twice@": '{"role":"user","role":"user","content":"x"}',
    "@RAW:digits@": "9" * 5000,
    "@RAW:huge@": "1e999",
    "@RAW:small@": "-1e-999",
    "@RAW:nan@": "NaN",
    "@RAW:lone@": '"\\ud800"',
    "@RAW:pair@": '"\\ud83d\\ude00"',
    "@RAW:word@": "undefined",
    "@RAW:control@": '"\x01\x02"',
}
"""Pieces of JSON text that no Python value is written as; each stands as a text in a tree until it is written."""

WORDS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1e308, 10**18, 2**63, -(2**63) - 1, 10**400, "", " ", "\t\n", "\x00",
    "0",
    "1", "true", "null", "NaN", "user", "system", "tool", "python", "../..", "-rf", "\x1b[31mred\x1b[0m", "a\rb",
    "\u202eabc",
    "\u2028", "\ufeff", "\ufffd", "é" * 3, "\U0001f600", "x" * 30_000, "Human: hi\n\nAssistant: ho", [], {}, [[]], [{}],
    {"": ""}, [None], ["x"], [0, 1], {"role": "user", "content": "x"}, {"from": "gpt", "value": 3}, [1, "2", None, [3]],
    "<|end|>", "${HOME}", "{{ 7 * 7 }}", "!!python/object", *RAW,
)  # fmt: skip
"""Values that stand where others belong."""
NAMES = (
    "prompt", "chosen", "rejected", "response", "responses", "completions", "label", "messages", "conversations",
    "meta",
    "id", "instruction", "output", "ranks", "scores", "role", "content", "score", "annotator", "system", "history",
    "probe",
    "", " ", "__proto__", "Prompt", "\x1b[2J",
)  # fmt: skip
"""Names for fields that were renamed or added."""


def value(rng: random.Random) -> Any:
    """Something that does not belong there."""
    return copy.deepcopy(rng.choice(WORDS))  # the next damage may be inside it


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a tree of lists and objects, the tree itself left out."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [found for key in keys for found in ((*path, key), *places(tree[key], (*path, key)))]


def tree(document: Any, rng: random.Random) -> tuple[Any, str]:
    """Change one place of a tree; the tree is changed itself.

    Returns:
        The tree (another one where the whole of it was replaced) and what was done.
    """
    found = places(document)
    if not found or rng.random() < 0.02:
        return value(rng), "replaced"
    path = rng.choice(found)
    above = document
    for key in path[:-1]:
        above = above[key]
    last, what = path[-1], rng.choice(("wrong", "wrong", "removed", "renamed", "added", "wrapped", "repeated"))
    if what == "removed":
        del above[last]
    elif what == "renamed" and isinstance(above, dict):
        above[rng.choice((*NAMES, f"{last}s", str(last)[:-1]))] = above.pop(last)
    elif what == "added" and isinstance(above, dict):
        above[rng.choice(NAMES)] = value(rng)
    elif what == "wrapped":
        above[last] = rng.choice(([above[last]], {"value": above[last]}, str(above[last])))
    elif what == "repeated" and isinstance(above, list):
        above.append(above[last])
    else:
        above[last], what = value(rng), "wrong"
    return document, what


def as_tree(data: bytes) -> Any:
    """What JSON says; None where it is broken already."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def as_json(document: Any, **settings: Any) -> str:
    """A tree as JSON text, with the pieces of `RAW` put in."""
    text = json.dumps(document, **settings)
    for mark, piece in RAW.items():
        text = text.replace(f'"{mark}"', piece) if mark in text else text
    return text


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    some = rng.choice(
        (b"\0", b"\xff", b"\xc3(", b"\x1b[2J", b"\n", b"}", b'"', b"{", b"\r", b"\xed\xa0\x80", b"\t", b"#")
    )
    return data[:at] + some * rng.choice((1, 1, 3)) + data[at:]


def _recoded(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    coding = rng.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7", "shift_jis"))
    return text.encode(coding, "replace")


def _swapped(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


FOREIGN = (
    b"PAR1" + b"\0" * 30 + b"PAR1", b"\x28\xb5\x2f\xfd\x04\x00abc", b"PK\x03\x04zip", b"BZh91AY", b"\xfd7zXZ\x00",
    b"\x80\x04.",
    b"%PDF-1.7\n", b"<html><body>404</body></html>\n", b"prompt,chosen,rejected\na,b,c\n", b"\x1f\x8b",
    b"\x1f\x8b\x08\x00",
    b"---\n- prompt: x\n", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", b"[", b"{", b"[[[",
    b'"', b"]",
    b"null", b"\n\n\n", b"\xef\xbb\xbf", b" ", b"", b"[]", b"{}", b"[{}]", b"0", b"\0" * 100, b"[" * 200_000,
    b'{"a":' * 100_000,
)  # fmt: skip
"""Whole files of other kinds, or of none."""

BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped": lambda data, rng: _flip(data, rng) if data else data,
    "cut": lambda data, rng: data[: rng.randrange(len(data) + 1)],
    "headless": lambda data, rng: data[rng.randrange(len(data) + 1) :],
    "inserted": _insert,
    "recoded": _recoded,
    "bom": lambda data, _: b"\xef\xbb\xbf" + data,
    "bom_twice": lambda data, _: b"\xef\xbb\xbf\xef\xbb\xbf" + data,
    "crlf": lambda data, _: data.replace(b"\n", b"\r\n"),
    "cr": lambda data, _: data.replace(b"\n", b"\r"),
    "one_line": lambda data, _: data.replace(b"\n", b""),
    "lines_shuffled": _swapped,
    "tabs": lambda data, _: data.replace(b"  ", b"\t"),
    "twice": lambda data, _: data + data,
    "zeros": lambda data, rng: data + b"\0" * rng.choice((1, 4096)),
    "foreign": lambda _, rng: rng.choice(FOREIGN),
    "gzipped": lambda data, _: gzip.compress(data, 1, mtime=0),
    "gzip_cut": lambda data, rng: gzip.compress(data, 1, mtime=0)[: rng.randrange(3, 40)],
    "gzip_flipped": lambda data, rng: _flip(gzip.compress(data, 1, mtime=0), rng),
    "gzip_tail": lambda data, _: gzip.compress(data, 1, mtime=0) + b"rubbish",
}
"""Ways to break bytes, by name."""


def some_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Break bytes in one way."""
    name = rng.choice(tuple(BYTES))
    return BYTES[name](data, rng), name
