"""What an engine keeps for an exact resume: of each trained weight the piece that a rank holds, with its moments.

A piece says where in the flattened weight it begins, so pieces of any number of ranks and any ZeRO stage can be put
together (`merge`) and cut anew: the file of one rank resumes the same rank of as many, the merged files of all ranks
resume any other number of ranks, one process included. The bits of weights and moments stay what they were.

    {"pieces": {NAME: {"start": place, "shape": [...], "step": of the optimizer, "values": {"weight": [n], ...}}},
     "counters": [steps, skipped, bad_in_a_row]}
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


def piece(shape: Sequence[int], start: int, values: Mapping[str, Tensor], step: float) -> dict[str, Any]:
    """One weight's entry, copied to the CPU.

    Args:
        shape: of the whole weight.
        start: where the values begin in the flattened weight.
        values: "weight", and the optimizer's tensors by their names. [n] each
        step: how many updates the optimizer has made to it; 0 where it has made none.
    """
    copies = {name: value.detach().flatten().to("cpu", copy=True) for name, value in values.items()}
    return {"start": start, "shape": list(shape), "step": float(step), "values": copies}


def merge(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The states of all ranks of one engine as one that an engine on any number of ranks can load.

    Args:
        states: what `state_dict` gave on each rank, in any order.

    Returns:
        A state whose pieces are whole.

    Raises:
        ValueError: the pieces leave a gap.
    """
    names = dict.fromkeys(name for state in states for name in state["pieces"])
    whole = {
        name: _join(name, [state["pieces"][name] for state in states if name in state["pieces"]]) for name in names
    }
    return {"pieces": whole, "counters": list(states[0]["counters"])}


def cut(state: Mapping[str, Any], name: str, key: str, start: int, count: int) -> Tensor:
    """Part of a flattened weight or moment.

    Args:
        state: what `state_dict` or `merge` gave.
        name: of the weight.
        key: "weight" or the name of an optimizer's tensor; one that was never made counts as 0.
        start: first element wanted.
        count: how many.

    Raises:
        ValueError: the state does not hold them: it is of another rank, or of another number of ranks.
    """
    found = state["pieces"].get(name)
    if found is None:
        raise ValueError(f"the checkpoint holds nothing of {name}, wanted elements {start} to {start + count}")
    weight, at = found["values"][WEIGHT], start - found["start"]
    if at < 0 or at + count > len(weight):
        raise ValueError(
            f"the checkpoint holds elements {found['start']} to {found['start'] + len(weight)} of {name}, wanted "
            f"{start} to {start + count}; merge the states of all ranks to resume on another number of them"
        )
    values: Tensor | None = found["values"].get(key)
    return torch.zeros(count) if values is None else values[at : at + count]


class _Joined(Mapping[str, Tensor]):
    """The values of one weight end to end, put together anew each time one is asked for.

    The checkpoint of a large model lies on disk until then, and no rank ever holds more of it than one weight.
    """

    def __init__(self, size: int, pieces: Sequence[Mapping[str, Any]]) -> None:
        """Remember the pieces.

        Args:
            size: elements of the weight.
            pieces: that cover it.
        """
        self._size, self._pieces = size, pieces
        self._keys = list(dict.fromkeys(key for one in pieces for key in one["values"]))

    def __getitem__(self, key: str) -> Tensor:
        """Values of all pieces, 0 where one has none: [size]."""
        found = [(one["start"], torch.as_tensor(one["values"][key])) for one in self._pieces if key in one["values"]]
        if not found:
            raise KeyError(key)
        whole = torch.zeros(self._size, dtype=found[0][1].dtype)
        for start, values in found:
            whole[start : start + len(values)] = values
        return whole

    def __iter__(self) -> Iterator[str]:
        """Names of the values."""
        return iter(self._keys)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._keys)


def _join(name: str, pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The pieces of one weight end to end."""
    ordered, shape = sorted(pieces, key=lambda one: int(one["start"])), pieces[0]["shape"]
    size, reached = int(torch.Size(shape).numel()), 0
    for one in ordered:
        if one["start"] > reached:
            break
        reached = max(reached, one["start"] + len(one["values"][WEIGHT]))
    if reached < size:
        raise ValueError(f"the checkpoints of all ranks leave elements of {name} unsaid, from {reached} of {size} on")
    steps = max(one["step"] for one in ordered)
    return {"start": 0, "shape": list(shape), "step": steps, "values": _Joined(size, ordered)}
