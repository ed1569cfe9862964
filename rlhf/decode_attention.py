"""Attention of one new token per row on a CPU, as weighted sums of the rows of two tables.

For a single query, attention is two products of a vector with a matrix for every row and head, bound by the speed of
memory, of which `scaled_dot_product_attention` and batched products reach about a quarter. `embedding_bag` adds up
chosen rows of a table, each with a weight, at nearly all of it, and both products can be written so:

    score(t) = sum over d of q(d) K(d, t)      rows of keys, one per feature d and as wide as the sequence
    output   = sum over t of p(t) V(t)         rows of values, one per position t

A row of a table is named by its index, so a sequence that has ended is dropped by naming it no more: nothing is copied.
The prompt itself goes through the attention of transformers; the tables are filled on the way.
"""

from typing import Any

import numpy
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

LANES = 16
"""Floats of a cache line: rows of keys begin at multiples of it."""
ROOM = 64
"""Positions that the tables of keys have beyond the prompt at first; they grow by half when full."""
UNKNOWN_SETTINGS = ("softcap", "s_aux", "position_bias")
"""What some models hand to their attention function and this one has no place for."""


class Slots:
    """Which sequences are computed, where each lies in the tables, and how far these are filled; one for all layers."""

    def __init__(self, sequences: int, *, width: int, padding: int, capacity: int) -> None:
        """Begin with prompts.

        Args:
            sequences: rows of the tables of a head.
            width: positions of the longest prompt; shorter ones end where it ends.
            padding: positions before the shortest prompt.
            capacity: positions of prompt and response together.
        """
        self.sequences, self.width, self.padding, self.capacity = sequences, width, padding, capacity
        self.rows: slice | Tensor = slice(0, sequences)
        """Those that are computed."""
        self.stop = width
        self.source: Tensor | None = None
        """While prompts are computed: which of the computed sequences is written to each of `rows`; None: in order."""
        self.decoding = False
        self._known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def prompts(self, rows: slice, source: Tensor | None) -> None:
        """What comes next are prompts for these rows of the tables."""
        self.rows, self.source = rows, source

    def end_prompts(self) -> None:
        """All prompts are written; what comes next are further tokens of all sequences, in their order."""
        self.rows, self.source, self.decoding = slice(0, self.sequences), None, True

    def advance(self) -> None:
        """What comes next is one more token of every row."""
        self.stop += 1

    def keep(self, indices: Tensor) -> None:
        """Only these of the rows go on."""
        self.rows = self._numbers()[indices]
        self._known.clear()

    def feature_rows(self, heads: int, key_heads: int, features: int) -> tuple[Tensor, Tensor]:
        """All features of each row and head, in a table [sequences, key heads, features], and where each begins."""
        return self._rows((heads, key_heads, features, features))

    def position_rows(self, heads: int, key_heads: int) -> tuple[Tensor, Tensor]:
        """Filled positions of each row and head, in a table [sequences, key heads, capacity], and where each begins."""
        return self._rows((heads, key_heads, self.capacity, self.stop))

    def _rows(self, key: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        if key not in self._known:
            heads, key_heads, size, used = key
            self._known = {old: rows for old, rows in self._known.items() if old[2] != size}  # of the step before
            # Neighbouring heads share keys.
            head = torch.arange(heads) // (heads // key_heads)
            first = (self._numbers().unsqueeze(1) * key_heads + head).view(-1, 1) * size
            self._known[key] = ((first + torch.arange(used)).view(-1), torch.arange(len(first)) * used)
        return self._known[key]

    def _numbers(self) -> Tensor:
        return torch.arange(self.sequences)[self.rows]


class TableLayer(CacheLayerMixin):
    """Keys and values of one layer as two tables."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        """Begin without tables; the first keys say how large."""
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self.slots = slots
        self.tables: tuple[Tensor, Tensor] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make tables for the heads and widths of the first keys and values."""
        slots, heads = self.slots, key_states.shape[1]
        width = _rounded(min(slots.capacity, slots.width + ROOM))
        keys = _empty(slots.sequences, heads, key_states.shape[-1], width)
        values = _empty(slots.sequences, heads, slots.capacity, value_states.shape[-1])
        # Places before a shorter prompt are read, with weight 0, and nothing else would make numbers of them.
        keys[..., : slots.padding].zero_()
        values[:, :, : slots.padding].zero_()
        self.tables = keys, values
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new positions.

        Returns:
            What the attention function gets as keys and values: for prompts, these themselves; for a further token, the
            layer as `Keys`, and the table of values.
        """
        if self.tables is None:
            self.lazy_initialization(key_states, value_states)
        slots = self.slots
        keys, values = self._roomy()
        if not slots.decoding:
            new_keys, new_values = key_states, value_states
            if slots.source is not None:
                new_keys, new_values = new_keys[slots.source], new_values[slots.source]
            start = slots.stop - key_states.shape[2]
            keys[slots.rows, :, :, start : slots.stop] = new_keys.transpose(2, 3)
            values[slots.rows, :, start : slots.stop] = new_values
            return key_states, value_states
        keys[slots.rows, :, :, slots.stop - 1] = key_states[:, :, 0]
        values[slots.rows, :, slots.stop - 1] = value_states[:, :, 0]
        return Keys.of(self, keys), values

    def attend(self, query: Tensor, mask: Tensor, scaling: float) -> Tensor:
        """Attention of one token per row over everything so far.

        Args:
            query: [B, heads, 1, width] float32
            mask: 0 where a position may be read and -inf at padding. [B, 1, 1, positions]
            scaling: factor on the scores.

        Returns:
            [B, 1, heads, width of values]
        """
        keys, values = self._roomy()
        rows, heads, _, width = query.shape
        index, begins = self.slots.feature_rows(heads, keys.shape[1], width)
        scores = _weighted_sums(keys, index, begins, query * scaling).view(rows, heads, -1)
        weights = torch.softmax(scores[:, :, : self.slots.stop] + mask[:, 0], dim=-1)
        index, begins = self.slots.position_rows(heads, values.shape[1])
        return _weighted_sums(values, index, begins, weights).view(rows, 1, heads, -1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """A block of prompts sees itself alone; a further token comes with a mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Positions before the coming ones, as far as positions and masks are derived from it: none, both are given."""
        return 0

    def get_max_length(self) -> int:
        """Positions that fit."""
        return self.slots.capacity

    def _roomy(self) -> tuple[Tensor, Tensor]:
        """The tables, with room for what is being written."""
        if self.tables is None:
            raise ValueError("TableLayer: used before the first keys and values arrived")
        keys, values = self.tables
        if self.slots.stop > (width := keys.shape[-1]):
            larger = _empty(*keys.shape[:3], _rounded(min(self.slots.capacity, width + width // 2)))
            larger[..., :width] = keys
            self.tables = larger, values
        return self.tables


class Keys(Tensor):
    """A table of keys on its way through the model's own code to the attention function."""

    layer: TableLayer
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # torch's way

    @classmethod
    def of(cls, layer: TableLayer, keys: Tensor) -> "Keys":
        """The table of a layer."""
        made: Keys = torch.Tensor._make_subclass(cls, keys)
        made.layer = layer
        return made


class TableAttention:
    """An attention function that knows `Keys` and leaves everything else to the one that was registered before."""

    def __init__(self, otherwise: Any) -> None:
        """Wrap a function."""
        self.otherwise = otherwise

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
    ) -> Any:
        """As transformers calls attention functions.

        Raises:
            ValueError: a setting that changes the result in a way that is not known here.
        """
        if not isinstance(key, Keys):
            return self.otherwise(module, query, key, value, attention_mask, **settings)
        if unknown := [name for name in UNKNOWN_SETTINGS if settings.get(name) is not None]:
            raise ValueError(f"{type(module).__name__} attends with {unknown[0]}, which decode_attention does not know")
        scaling = settings.get("scaling")
        factor = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        return key.layer.attend(query, attention_mask, factor), None


def install() -> None:
    """Have models with the attention "sdpa" understand `Keys`; whatever was registered there still does its work."""
    now = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not isinstance(now, TableAttention):
        ALL_ATTENTION_FUNCTIONS.register("sdpa", TableAttention(now))


def suits(model: PreTrainedModel) -> bool:
    """Whether a model computes where tables are faster and exact: fp32 on a CPU, through the attention "sdpa".

    Args:
        model: one whose layers all attend to all earlier tokens, `kv_cache.attends_fully`.
    """
    return (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and model.config._attn_implementation == "sdpa"
        and not torch.is_autocast_enabled("cpu")
    )


def _weighted_sums(table: Tensor, index: Tensor, begins: Tensor, weights: Tensor) -> Tensor:
    """Sums of chosen rows of a table. [bags, last dimension]."""
    flat, sums = table.view(-1, table.shape[-1]), 0
    # Without the checks of torch.nn.functional, which take as long as a small sum: the indices are our own.
    return torch.embedding_bag(flat, index, begins, False, sums, False, weights.reshape(-1))[0]


def _empty(*shape: int) -> Tensor:
    """fp32 memory by numpy, which asks the kernel for large pages: a table is read from end to end in every step."""
    return torch.from_numpy(numpy.empty(shape, dtype=numpy.float32))


def _rounded(width: int) -> int:
    return -(-width // LANES) * LANES
