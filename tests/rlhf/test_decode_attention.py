"""Attention over tables: what the attention of torch gives, for rows that lie anywhere in the tables."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf.decode_attention import Keys, Slots, TableAttention, TableLayer, install

ATOL = 1e-6
HEADS, KEY_HEADS, WIDTH = 4, 2, 6


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(sequences=3, width=5, capacity=80, steps=2):
    """A layer that has seen prompts of `width` and `steps` more tokens, and the keys and values as plain tensors."""
    slots = Slots(sequences, width=width, padding=0, capacity=capacity)
    layer = TableLayer(slots)
    slots.prompts(slice(0, sequences), None)
    keys, values = drawn(sequences, KEY_HEADS, width, WIDTH), drawn(sequences, KEY_HEADS, width, WIDTH, seed=1)
    layer.update(keys, values)
    slots.end_prompts()
    for step in range(steps):
        slots.advance()
        more = drawn(sequences, KEY_HEADS, 1, WIDTH, seed=2 + step)
        layer.update(more, -more)
        keys, values = torch.cat((keys, more), dim=2), torch.cat((values, -more), dim=2)
    return layer, keys, values


def expected(query, keys, values, mask=None, scale=0.3):
    repeated = [one.repeat_interleave(HEADS // KEY_HEADS, dim=1) for one in (keys, values)]
    return scaled_dot_product_attention(query, *repeated, attn_mask=mask, scale=scale).transpose(1, 2)


@pytest.mark.parametrize("steps", [1, 70])
def test_it_gives_what_torch_gives_also_after_the_tables_have_grown(steps):
    layer, keys, values = filled(steps=steps)
    query, mask = drawn(3, HEADS, 1, WIDTH, seed=9), torch.zeros(3, 1, 1, keys.shape[2])
    mask[1, :, :, :2] = -torch.inf
    found = layer.attend(query, mask, 0.3)
    torch.testing.assert_close(found, expected(query, keys, values, mask), atol=ATOL, rtol=0)


def test_rows_that_are_kept_go_on_and_the_others_are_neither_read_nor_written():
    layer, keys, values = filled()
    layer.slots.keep(torch.tensor([2, 0]))
    layer.slots.advance()
    more = drawn(2, KEY_HEADS, 1, WIDTH, seed=7)
    layer.update(more, more)
    keys, values = (torch.cat((one[[2, 0]], more), dim=2) for one in (keys, values))
    query = drawn(2, HEADS, 1, WIDTH, seed=9)
    found = layer.attend(query, torch.zeros(2, 1, 1, keys.shape[2]), 0.3)
    torch.testing.assert_close(found, expected(query, keys, values), atol=ATOL, rtol=0)
    layer.slots.keep(torch.tensor([1]))  # row 0 of the beginning
    assert layer.slots.rows.tolist() == [0]


def test_a_prompt_of_several_rows_is_written_to_each():
    slots = Slots(4, width=3, padding=1, capacity=8)
    layer = TableLayer(slots)
    for rows, source, width in ((slice(0, 3), torch.tensor([0, 0, 1]), 2), (slice(3, 4), None, 3)):
        slots.prompts(rows, source)
        keys = drawn(2 if source is not None else 1, KEY_HEADS, width, WIDTH, seed=width)
        assert all(one is keys for one in layer.update(keys, keys))
    table, values = layer.tables
    assert torch.equal(table[0, :, :, :3], table[1, :, :, :3])
    assert not torch.equal(table[0, :, :, :3], table[2, :, :, :3])
    assert not table[:3, :, :, 0].any()
    torch.testing.assert_close(table[3, :, :, :3].transpose(1, 2), values[3, :, :3])


def test_only_tables_are_taken_from_the_function_that_was_there():
    install()
    installed = ALL_ATTENTION_FUNCTIONS["sdpa"]
    install()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is installed
    seen = []
    function = TableAttention(lambda *given, **settings: seen.append((given, settings)))
    plain = drawn(1, 1, 1, WIDTH)
    function(nn.Identity(), plain, plain, plain, None, scaling=0.5)
    assert seen == [((seen[0][0][0], plain, plain, plain, None), {"scaling": 0.5})]
    layer, keys, values = filled()
    query, mask = drawn(3, HEADS, 1, WIDTH, seed=9), torch.zeros(3, 1, 1, keys.shape[2])
    table = Keys.of(layer, layer.tables[0])
    found, weights = function(nn.Identity(), query, table, layer.tables[1], mask, dropout=0.0)
    assert weights is None
    torch.testing.assert_close(found, expected(query, keys, values, scale=WIDTH**-0.5), atol=ATOL, rtol=0)
    with pytest.raises(ValueError, match="attends with softcap"):
        function(nn.Identity(), query, table, layer.tables[1], mask, softcap=30.0)


def test_a_layer_without_tables_cannot_attend():
    with pytest.raises(ValueError, match="before the first keys"):
        TableLayer(Slots(1, width=1, padding=0, capacity=2)).attend(drawn(1, 1, 1, 2), torch.zeros(1, 1, 1, 1), 1.0)
