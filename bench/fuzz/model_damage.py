"""Ways to break a file of a model: its bytes, its JSON, the header of its weights, or a pickle in its place."""

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

from bench.fuzz import damage

WEIGHTS = "model.safetensors"


class _Evil:
    """What runs code when it is read by pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch pwned",))


PICKLE = pickle.dumps(_Evil())


def break_file(path: Path, rng: random.Random) -> None:
    """Damage bytes, or a tree where the file is JSON, or put something else in its place."""
    if not path.is_file():  # broken before
        return
    data, what = path.read_bytes(), rng.random()
    document = damage.as_tree(data) if path.suffix == ".json" and what < 0.6 else None
    if document is not None:
        for _ in range(rng.choice((1, 1, 2, 3))):
            document, _ = damage.tree(document, rng)
        path.write_bytes(damage.as_json(document).encode("utf-8", "surrogatepass"))
    elif what < 0.65:
        path.unlink()
    elif what < 0.72:
        path.write_bytes(PICKLE)
    elif what < 0.75:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(damage.some_bytes(data, rng)[0])


def break_weights(path: Path, rng: random.Random) -> None:
    """Damage the header or the numbers of safetensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, what = json.loads(data[8 : 8 + length]), rng.random()
    if what < 0.5:
        header, _ = damage.tree(header, rng)
        text = damage.as_json(header).encode("utf-8", "surrogatepass")
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    elif what < 0.6:
        path.write_bytes(rng.choice((0, 2**63, 2**32, length + 8, length - 1)).to_bytes(8, "little") + data[8:])
    else:
        break_file(path, rng)
