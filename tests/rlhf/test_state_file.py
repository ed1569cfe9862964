import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf import state_file
from rlhf.state_file import read_about, read_state, write_state


def there_and_back(state: Any, folder: Path) -> Any:
    with (folder / "state").open("wb") as stream:
        write_state(stream, state, {"step": 3})
    return read_state(folder / "state")


def test_every_kind_of_value_comes_back_as_it_was(tmp_path: Path) -> None:
    floats = [0.1, -0.0, 1e-320, 1.0, math.inf, -math.inf, 2**53 + 1.0]
    state = {
        "floats": floats, "ints": [0, -1, 2**80], "flags": [True, False, None], "text": "a\u2028\ud800\x00é",
        "empty": [[], {}, ()], "keys": {1: "int", "1": "str", (2, "x"): "tuple", None: 0, False: 1.5},
        "nested": [{"a": ({"b": [1, (2, 3)]},)}], "dict": {"dict": {"tensor": 7}, "float": "nan"},
    }  # fmt: skip
    found = there_and_back(state, tmp_path)
    assert repr(found) == repr(state)
    assert [struct.pack("d", one) for one in found["floats"]] == [struct.pack("d", one) for one in floats]
    assert math.isnan(there_and_back([math.nan], tmp_path)[0])


@pytest.mark.parametrize("name", [*state_file.NAMES, "complex64", "complex128", "float8_e4m3fnuz"])
def test_tensors_of_every_type_come_back_with_their_bits(name: str, tmp_path: Path) -> None:
    kind = getattr(torch, name)
    bits = torch.randint(0, 2 if name == "bool" else 256, (6, kind.itemsize), dtype=torch.uint8)
    tensor = bits.view(kind).reshape(2, 3)
    found = there_and_back({"x": tensor, "scalar": tensor[1, 2], "none": tensor[:0]}, tmp_path)
    assert (found["x"].dtype, found["x"].shape) == (kind, (2, 3))
    assert torch.equal(found["x"].contiguous().view(torch.uint8), tensor.view(torch.uint8))
    assert (found["scalar"].shape, found["none"].shape) == ((), (0, 3))


def test_types_of_all_sizes_together_are_read_where_they_lie(tmp_path: Path) -> None:
    state = {"bytes": torch.arange(3, dtype=torch.uint8), "long": torch.arange(5), "half": torch.ones(3).half()}
    found = there_and_back(state, tmp_path)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert all(found[name].data_ptr() % found[name].element_size() == 0 for name in state)
    assert load_file(tmp_path / "state").keys() == {"0", "1", "2"}


def test_a_tensor_that_occurs_twice_is_written_once_and_views_are_written_whole(tmp_path: Path) -> None:
    big = torch.randn(1000, 10)
    state = {"a": big, "b": big, "turned": big.T, "column": big[:, 3], "part": big[2:4]}
    found = there_and_back(state, tmp_path)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["a"] is found["b"]
    assert (tmp_path / "state").stat().st_size < 2 * 40_000 + 4_000 + 80 + 2_000


def test_a_long_list_of_numbers_takes_eight_bytes_for_each(tmp_path: Path) -> None:
    numbers = [2**62 - n for n in range(5000)]
    assert there_and_back({"order": numbers}, tmp_path) == {"order": numbers}
    assert (tmp_path / "state").stat().st_size < 41_000


def test_reading_a_large_state_takes_no_memory_until_it_is_looked_at(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    with (tmp_path / "state").open("wb") as stream:
        write_state(stream, [torch.zeros(2**25)], {})
    before = resident()
    found = read_state(tmp_path / "state")
    assert resident() - before < 2**24
    assert float(found[0].sum()) == 0.0
    assert resident() - before > 2**26


def test_what_was_told_is_read_alone_and_equal_states_are_equal_files(tmp_path: Path) -> None:
    def written() -> tuple[str, bytes]:
        stream = io.BytesIO()
        return write_state(stream, {"x": torch.ones(3), "y": [1]}, {"step": 3, "stage": "sft"}), stream.getvalue()

    assert written() == written()
    (tmp_path / "state").write_bytes(written()[1])
    assert read_about(tmp_path / "state") == {"step": 3, "stage": "sft"}


def test_what_is_no_state_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state"
    torch.save({"x": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_state(file)
    save_file({"x": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="holds no state"):
        read_about(file)
    document: dict[str, Any] = {"format": 1, "about": {}, "tree": {"tensor": 5}}
    save_file({"x": torch.ones(2)}, file, {"state": json.dumps(document)})
    with pytest.raises(ValueError, match="do not fit its tree"):
        read_state(file)
    save_file({"x": torch.ones(2)}, file, {"state": json.dumps({**document, "format": 2})})
    with pytest.raises(ValueError, match="has format 2, wanted 1"):
        read_state(file)


@pytest.mark.parametrize("value", [{1, 2}, b"x", Path(), torch.ones(2).to_sparse(), object()])
def test_what_cannot_be_kept_is_named(value: object) -> None:
    with pytest.raises(TypeError, match=r"state\['a'\]\[1\] is a "):
        write_state(io.BytesIO(), {"a": [0, value]}, {})
