"""Nested states in one safetensors file: tensors as they are, all else as JSON in its metadata. Nothing in it can run.

    8 bytes     length of the header, little-endian
    header      JSON: type, shape and place of each tensor; "__metadata__": {"state": JSON of format, about and tree}
    the rest    the tensors' bytes, end to end

A tree is JSON in which an object has one member that says what it stands for: {"dict": {...}} has strings as keys,
{"items": [[key, value], ...]} any, {"tuple": [...]}, {"float": "nan" or "inf" or "-inf"}, {"tensor": place}, {"ints":
place} (a long list of whole numbers). Other floats are written with all their digits, so they come back exactly.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Torch is imported where it is used: the launcher reads this module before it becomes the process that computes.

FORMAT = 1
"""Version of the layout; a file of another one is refused."""
ENTRY = "state"
CHUNK = 2**26
"""Bytes that are hashed and written together."""
LONG = 1000
"""Longer lists of whole numbers are kept as a tensor."""
NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint64": "U64", "uint32": "U32", "uint16": "U16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""Types of tensors in torch and in safetensors; others are kept as bytes, with their type in the tree."""


def write_state(stream: IO[bytes], state: Any, about: Mapping[str, Any]) -> str:
    """Write a state; each tensor is brought to the CPU and made contiguous on its own, so memory is never doubled.

    Args:
        stream: open for writing, at its beginning.
        state: nested dicts (with keys of any kind below), lists and tuples of tensors, numbers, strings and None. A
            tensor that occurs twice is written once; views that only overlap are written whole, each on its own.
        about: what `read_about` gives, as JSON.

    Returns:
        SHA-256 of what was written, in hexadecimal digits.

    Raises:
        TypeError: something in the state is none of these.
    """
    leaves = _Leaves()
    tree = leaves.encode(state, "state")
    # Larger elements first: then every tensor begins at a multiple of its element's size, as a view of a file needs.
    order = sorted(range(len(leaves.tensors)), key=lambda place: -leaves.tensors[place].element_size())
    header: dict[str, Any] = {
        "__metadata__": {ENTRY: json.dumps({"format": FORMAT, "about": dict(about), "tree": tree})}
    }
    end = 0
    for place in order:
        tensor = leaves.tensors[place]
        start, end = end, end + tensor.numel() * tensor.element_size()
        name = NAMES.get(_type_name(tensor))
        kind, shape = (name, list(tensor.shape)) if name else ("U8", [end - start])
        header[str(place)] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    for block in (len(text).to_bytes(8, "little"), text):
        digest.update(block)
        stream.write(block)
    for place in order:
        for chunk in _chunks(leaves.tensors[place]):
            digest.update(chunk)
            stream.write(chunk)
    return digest.hexdigest()


def read_about(file: Path) -> dict[str, Any]:
    """What `write_state` was told about a state, without reading the state.

    Raises:
        ValueError: the file is no state of this format.
    """
    return dict(_document(file)["about"])


def read_state(file: Path) -> Any:
    """The state that `write_state` wrote; its tensors lie in the file until they are looked at.

    Raises:
        ValueError: the file is no state of this format.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    tree = _document(file)["tree"]
    found: dict[int, Tensor] = {}
    try:
        with safe_open(file, framework="pt") as stream:

            def tensor(place: int) -> "Tensor":
                if place not in found:
                    found[place] = stream.get_tensor(str(place))
                return found[place]

            return _decode(tree, tensor, torch)
    except (SafetensorError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise ValueError(f"its tensors do not fit its tree ({error})") from error


class _Leaves:
    """The tensors of a state, each once, in the order in which they were met."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._places: dict[Any, int] = {}

    def encode(self, value: Any, where: str) -> Any:
        """JSON of a value; its tensors are put into `tensors`."""
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        if isinstance(value, list):
            if len(value) > LONG and all(type(one) is int and -(2**63) <= one < 2**63 for one in value):
                return {"ints": self._ints(value)}
            return [self.encode(one, f"{where}[{place}]") for place, one in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": [self.encode(one, f"{where}[{place}]") for place, one in enumerate(value)]}
        if isinstance(value, Mapping):
            items = [(key, self.encode(one, f"{where}[{key!r}]")) for key, one in value.items()]
            if all(isinstance(key, str) for key, _ in items):
                return {"dict": dict(items)}
            return {"items": [[self.encode(key, f"a key of {where}"), one] for key, one in items]}
        return self._tensor(value, where)

    def _tensor(self, value: Any, where: str) -> dict[str, Any]:
        import torch

        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise TypeError(f"{where} is a {type(value).__name__}, wanted a number, a string, a plain tensor or nested")
        name = _type_name(value)
        leaf: dict[str, Any] = {"tensor": self._place(value)}
        return leaf if name in NAMES else {**leaf, "type": name, "shape": list(value.shape)}

    def _ints(self, value: list[int]) -> int:
        import torch

        return self._place(torch.tensor(value, dtype=torch.int64))

    def _place(self, tensor: "Tensor") -> int:
        same: Any = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        same = same if tensor.numel() else len(self.tensors)
        if same not in self._places:
            self._places[same] = len(self.tensors)
            self.tensors.append(tensor)  # which also keeps its memory from being given to another one meanwhile
        return self._places[same]


def _chunks(tensor: "Tensor") -> Iterable[memoryview]:
    """The bytes of a tensor in the order of its elements."""
    import torch

    if not tensor.numel():
        return
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    numbers: Any = plain.numpy()
    view = memoryview(numbers)
    for start in range(0, len(view), CHUNK):
        yield view[start : start + CHUNK]


def _type_name(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _document(file: Path) -> dict[str, Any]:
    """Format, about and tree of a file.

    Raises:
        ValueError: there are none, or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stream:
            document = json.loads((stream.metadata() or {})[ENTRY])
        version = document["format"]
        document = {name: document[name] for name in ("about", "tree")}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"is no safetensors file ({error})") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"holds no state ({type(error).__name__}: {error})") from error
    if version != FORMAT:
        raise ValueError(f"has format {version}, wanted {FORMAT}")
    return document


def _decode(tree: Any, tensor: Any, torch: Any) -> Any:
    """The value that a tree stands for."""
    if isinstance(tree, list):
        return [_decode(one, tensor, torch) for one in tree]
    if not isinstance(tree, dict):
        return tree
    kind = next(iter(tree))
    value = tree[kind]
    if kind == "dict":
        return {key: _decode(one, tensor, torch) for key, one in value.items()}
    if kind == "items":
        return {_decode(key, tensor, torch): _decode(one, tensor, torch) for key, one in value}
    if kind == "tuple":
        return tuple(_decode(one, tensor, torch) for one in value)
    if kind == "float":
        return float(value)
    if kind == "ints":
        return tensor(value).tolist()
    if kind != "tensor":
        raise KeyError(f"unknown kind {kind!r}")
    found = tensor(value)
    if "type" not in tree:
        return found
    return found.view(getattr(torch, tree["type"])).reshape(tree["shape"])
