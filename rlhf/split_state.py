"""Reading and writing this rank's pieces of weights and moments inside a DeepSpeed engine of any ZeRO stage."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf import distributed
from rlhf.engine_state import MOMENTS, WEIGHT, cut, piece


class Part(NamedTuple):
    """What this rank holds of one trained weight."""

    name: str
    shape: list[int]
    start: int
    """First element of it, in the flattened weight."""
    weight: Tensor
    """Its elements in fp32, a view into the optimizer's own memory. [n]"""
    flat: Any
    """The tensor that the optimizer steps on, which keeps its state; other weights may be in it too."""
    offset: int
    """Where the elements begin in it."""


def read_pieces(engine: Any) -> dict[str, Any]:
    """This rank's entry for each trained weight of which it holds something, see `engine_state`.

    Args:
        engine: DeepSpeed's.
    """
    found, states = {}, _adam(engine).state
    for part in _parts(engine):
        state, count = states.get(part.flat, {}), part.weight.numel()
        moments = {key: state[key].flatten()[part.offset : part.offset + count] for key in MOMENTS if key in state}
        step = float(state.get("step", 0.0))
        found[part.name] = piece(part.shape, part.start, {WEIGHT: part.weight, **moments}, step)
    return found


@torch.no_grad()
def write_pieces(engine: Any, state: Mapping[str, Any]) -> None:
    """Put back what `read_pieces` or `engine_state.merge` gave, and make the module's weights follow.

    Args:
        engine: DeepSpeed's.
        state: with pieces that cover what this rank holds.
    """
    states = _adam(engine).state
    for part in _parts(engine):
        count, found = part.weight.numel(), state["pieces"][part.name]
        part.weight.copy_(cut(state, part.name, WEIGHT, part.start, count))
        if not found["step"]:
            continue
        flat = part.flat
        if not states.get(flat):
            states[flat] = {"step": torch.zeros((), device=flat.device), **{key: _zeros(flat) for key in MOMENTS}}
        states[flat]["step"].fill_(found["step"])
        for key in MOMENTS:
            there = states[flat][key].view(-1)[part.offset : part.offset + count]
            there.copy_(cut(state, part.name, key, part.start, count))
    _follow(engine)


@torch.no_grad()
def take_back_step(engine: Any, groups: Sequence[int]) -> None:
    """Count one step less for weights that had no gradient in it, as torch's optimizer does; DeepSpeed counts it.

    Args:
        engine: DeepSpeed's, after its step.
        groups: numbers of the groups of weights that had none.
    """
    stage, optimizer, states = engine.zero_optimization_stage(), engine.optimizer, _adam(engine).state
    if stage == 0:
        flats = [weight for number in groups for weight in optimizer.param_groups[number]["params"]]
    elif stage == 3:
        whose = optimizer.sub_group_to_group_id
        flats = [flat for at, flat in enumerate(optimizer.fp32_partitioned_groups_flat) if whose[at] in groups]
    else:
        flats = [optimizer.single_partition_of_fp32_groups[number] for number in groups]
    for flat in flats:
        if "step" in states.get(flat, {}):
            states[flat]["step"] -= 1
    # Moments that were 0 are 0 still; others have shrunk, which torch would not have done, and by a step's worth only.


def _follow(engine: Any) -> None:
    """Copy the optimizer's weights into those that the module runs on, which are copies under ZeRO."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    if stage == 3:
        for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[group].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(group)
    elif stage > 0:
        optimizer.update_lp_params()


def _adam(engine: Any) -> Any:
    """Torch's optimizer inside DeepSpeed's."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _zeros(flat: Tensor) -> Tensor:
    return torch.zeros_like(flat, requires_grad=False)


def _parts(engine: Any) -> Iterator[Part]:
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    for name, weight in engine.module.named_parameters():
        if not weight.requires_grad:
            continue
        if stage == 3:
            yield from _split_part(name, weight, optimizer)
        elif stage > 0:
            yield from _mapped_part(name, weight, optimizer)
        else:
            yield Part(name, list(weight.shape), 0, weight.data.view(-1), weight, 0)


def _split_part(name: str, weight: Any, optimizer: Any) -> Iterator[Part]:
    """Under ZeRO-3 every weight is cut into as many equal parts as there are ranks; the last ones may be padding."""
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(weight)]
    start = distributed.rank() * size
    count = max(0, min(size, weight.ds_numel - start))
    if count:
        flat = optimizer.fp32_partitioned_groups_flat[group]
        yield Part(name, list(weight.ds_shape), start, flat.data[offset : offset + count], flat, offset)


def _mapped_part(name: str, weight: Any, optimizer: Any) -> Iterator[Part]:
    """Under ZeRO-1 and 2 all weights of a group lie end to end and the whole is cut: a rank has some only."""
    mapping = weight._hp_mapping
    if mapping is not None:
        flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        held = mapping.get_hp_fragment()
        offset = mapping.get_hp_fragment_address().start
        yield Part(name, list(weight.shape), mapping.lp_fragment_address.start, held, flat, offset)
