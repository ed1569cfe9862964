"""Attention over packed nodes, inside the attention layers of transformers' own models.

A forward pass gets the nodes of `rlhf.packing` as one row and the packing itself as the keyword `packing`, which models
hand down to their attention function. The function registered here under the usual name "sdpa" lays queries, keys and
values out as padded rows, attends causally, and gathers the results back to nodes; without the keyword it is the
function of transformers.
"""

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf.kv_cache import attends_fully
from rlhf.packing import Packed, pack

PROBE_ROWS = ((0, 1, 2, 3, 4), (0, 1, 5))
PROBE_TOLERANCE = 1e-4

_fits: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


class _ToPlaces(Function):
    """Rows of nodes to rows of places; the gradient of a node is the sum over its places."""

    @staticmethod
    def forward(ctx: Any, nodes: Tensor, packing: Packed) -> Tensor:
        ctx.packing = packing
        return nodes.index_select(0, packing.places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        packing: Packed = ctx.packing
        found = _filled(gradients[0].index_select(0, packing.homes), packing)
        if packing.repeats is not None and packing.repeated is not None:
            found = found.index_add(0, packing.repeated, gradients[0].index_select(0, packing.repeats))
        return found, None


class _ToNodes(Function):
    """Rows of places to rows of nodes, each read at its home; other places get no gradient."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, packing: Packed) -> Tensor:
        ctx.packing = packing
        return _filled(places.index_select(0, packing.homes), packing)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        packing = ctx.packing
        gradient = gradients[0][: len(packing.homes)]
        places = gradient.new_zeros(len(packing.places), *gradient.shape[1:])
        return places.index_copy(0, packing.homes, gradient), None


def _to_places(nodes: Tensor, packing: Packed) -> Tensor:
    """[M, heads, width] to [P, heads, width]."""
    places: Tensor = _ToPlaces.apply(nodes, packing)  # type: ignore[no-untyped-call]
    return places


def _filled(values: Tensor, packing: Packed) -> Tensor:
    """Values of the N nodes with zeros for the filling. [N, heads, width] to [M, heads, width]."""
    return functional.pad(values, (0, 0, 0, 0, 0, packing.input_ids.shape[1] - len(values)))


def to_batch(nodes: Tensor, packing: Packed) -> Tensor:
    """Lay values of nodes out as the batch that was packed.

    Args:
        nodes: one row per node; gradient flows. [N, ...]
        packing: what `pack` found.

    Returns:
        Values of places; at padding those of some node. [B, T, ...]
    """
    return nodes.index_select(0, packing.nodes.view(-1)).view(*packing.nodes.shape, *nodes.shape[1:])


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packed | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The attention function "sdpa" of transformers, which also understands `packing`.

    Args:
        module: the attention layer.
        query: [1, heads, N, width] with a packing, else as usual.
        key: [1, key heads, N, width]
        value: [1, key heads, N, width]
        attention_mask: not read with a packing.
        packing: what `pack` found.
        settings: what models hand to an attention function.

    Returns:
        Attended values and no weights. [1, N, heads, width]
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    settings["is_causal"] = True
    sizes = [rows * width for rows, width in packing.blocks]
    # Split and not sliced: the gradient of a split is one concatenation.
    placed = [torch.split(_to_places(one[0].transpose(0, 1), packing), sizes) for one in (query, key, value)]
    found = []
    for (rows, width), *parts in zip(packing.blocks, *placed, strict=True):
        block = [part.view(rows, width, *part.shape[1:]).transpose(1, 2) for part in parts]
        attended, _ = sdpa_attention_forward(module, *block, None, **settings)  # type: ignore[call-arg]  # three tensors
        found.append(attended.reshape(rows * width, *attended.shape[2:]))
    places = found[0] if len(found) == 1 else torch.cat(found)
    nodes: Tensor = _ToNodes.apply(places, packing)  # type: ignore[no-untyped-call]
    return nodes.unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register("sdpa", attend)


def hidden_states(trunk: nn.Module, packed: Packed) -> Tensor:
    """Last hidden states of nodes; gradient flows. [M, H].

    Args:
        trunk: a model without its head that `fits`.
        packed: what to run it on.
    """
    # A mask of four dimensions is handed down unread, so none is built.
    unread = packed.input_ids.new_zeros(1, 1, 1, 1, dtype=torch.bool)
    found = trunk(
        input_ids=packed.input_ids, position_ids=packed.position_ids, attention_mask=unread, packing=packed,
        use_cache=False,
    )  # fmt: skip
    hidden: Tensor = found.last_hidden_state
    return hidden[0]


def fits(trunk: nn.Module) -> bool:
    """Whether a model computes the same states from nodes as from padded rows.

    Decided once for each model: by its configuration, then by running both on a few tokens.

    Args:
        trunk: a Hugging Face model without its head, its dropout off.
    """
    known = _fits.get(trunk)
    if known is None:
        known = _is_known_kind(trunk) and _probe(trunk)
        _fits[trunk] = known
    return known


def _is_known_kind(trunk: nn.Module) -> bool:
    if not isinstance(trunk, PreTrainedModel):
        return False
    if trunk.config._attn_implementation != "sdpa" or not attends_fully(trunk):
        return False
    accepted = inspect.signature(trunk.forward).parameters
    return "position_ids" in accepted and "kwargs" in accepted


@torch.no_grad()
def _probe(trunk: nn.Module) -> bool:
    """Compare both on two rows that begin alike: some architectures ignore position ids, or the packing."""
    weight = next(trunk.parameters())
    ids = torch.zeros(2, max(map(len, PROBE_ROWS)), dtype=torch.int64, device=weight.device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(PROBE_ROWS):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), True
    packed = pack(ids, mask)
    wanted: Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state
    found = to_batch(hidden_states(trunk, packed), packed)
    scale = float(wanted[mask].abs().max().clamp(min=1.0))
    tolerance = PROBE_TOLERANCE * scale if weight.dtype == torch.float32 else 2e-2 * scale
    return bool(((found - wanted)[mask].abs() <= tolerance).all())
