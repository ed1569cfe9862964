"""A key/value cache with room set aside at the start: decoding writes in place instead of growing by copies."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin


class RoomyLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer in buffers of [rows, heads, capacity, head_dim], filled from the left."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        """Reserve `capacity` positions when the first keys arrive."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make buffers of the shape and type of the first keys and values."""
        rows, heads = key_states.shape[:2]
        self.keys = key_states.new_empty(rows, heads, self.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new positions and return views of everything so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self._buffers()
        stop = self.length + key_states.shape[-2]
        keys[:, :, self.length : stop] = key_states
        values[:, :, self.length : stop] = value_states
        self.length = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of key positions with the coming queries, and the position of the first."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions stored."""
        return self.length

    def get_max_length(self) -> int:
        """Positions that fit."""
        return self.capacity

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        keys, values = self._buffers()
        self.keys = _keep_rows(keys, indices, self.length)
        self.values = _keep_rows(values, indices, self.length)

    def _buffers(self) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            raise ValueError("RoomyLayer: used before the first keys and values arrived")
        return self.keys, self.values


def make_cache(model: PreTrainedModel, capacity: int) -> Cache:
    """The in-place cache where every layer attends to all earlier tokens, else the cache of transformers itself.

    Args:
        model: the model that will fill it.
        capacity: prompt and response positions together.
    """
    config = model.config.get_text_config()
    if attends_fully(model):
        return Cache(layers=[RoomyLayer(capacity) for _ in range(config.num_hidden_layers)])
    return DynamicCache(config=config)


def attends_fully(model: PreTrainedModel) -> bool:
    """Whether every layer is plain full attention: no sliding window, no chunks, no recurrent state."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None and not getattr(model, "_is_stateful", False)


def _keep_rows(buffer: Tensor, indices: Tensor, length: int) -> Tensor:
    kept = buffer.new_empty(len(indices), *buffer.shape[1:])
    kept[:, :, :length] = buffer[:, :, :length].index_select(0, indices)
    return kept
