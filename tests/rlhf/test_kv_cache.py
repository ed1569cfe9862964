import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlhf.kv_cache import RoomyLayer, attends_fully, make_cache

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16}


def test_updates_append_and_return_everything_so_far():
    layer = RoomyLayer(4)
    first, second = torch.rand(2, 1, 2, 3), torch.rand(2, 1, 1, 3)
    layer.update(first, first)
    keys, values = layer.update(second, -second)
    assert torch.equal(keys, torch.cat([first, second], dim=2))
    assert torch.equal(values, torch.cat([first, -second], dim=2))
    assert (layer.get_seq_length(), layer.get_max_length(), layer.get_mask_sizes(1)) == (3, 4, (4, 0))


def test_chosen_rows_keep_their_past_and_can_go_on():
    layer, past, more = RoomyLayer(3), torch.rand(3, 1, 2, 2), torch.rand(2, 1, 1, 2)
    layer.update(past, past)
    layer.batch_select_indices(torch.tensor([2, 0]))
    keys, _ = layer.update(more, more)
    assert torch.equal(keys, torch.cat([past[[2, 0]], more], dim=2))


def test_an_empty_cache_has_no_rows_to_choose():
    with pytest.raises(ValueError, match="before the first keys"):
        RoomyLayer(3).batch_select_indices(torch.tensor([0]))


def test_only_plain_attention_gets_the_roomy_cache():
    plain = LlamaForCausalLM(LlamaConfig(**SIZES))
    sliding = MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4))
    assert attends_fully(plain)
    assert all(isinstance(layer, RoomyLayer) for layer in make_cache(plain, 5).layers)
    assert not attends_fully(sliding)
    assert isinstance(make_cache(sliding, 5), DynamicCache)
