"""Decoders: the two ways give the same logits, and prompts are laid out without waste."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.decoder import BLOCK_TOKENS, PaddedDecoder, TableDecoder, blocks_of_like_length, distinct, left_padded

ATOL = 1e-5
CPU = torch.device("cpu")
PROMPTS = [[4], [5, 6], [5, 6], [5, 7], [4, 5, 6, 7, 8, 9]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=30, initializer_range=0.3)).eval().requires_grad_(False)


def test_both_ways_give_the_logits_of_the_whole_sequence(model):
    ways = [kind(model, PROMPTS, 4, 0) for kind in (TableDecoder, PaddedDecoder)]
    sequences = [list(prompt) for prompt in PROMPTS]

    def check(found):
        whole = [model(torch.tensor([sequence])).logits[0, -1] for sequence in sequences]
        for logits in found:
            torch.testing.assert_close(logits, torch.stack(whole), atol=ATOL, rtol=0)

    check([way.prefill() for way in ways])
    for kept in ([4, 0, 2], [1, 2], [0]):
        for way in ways:
            way.keep(torch.tensor(kept))
        sequences = [[*sequences[row], 11 + row] for row in kept]
        check([way.decode(torch.tensor([11 + row for row in kept])) for way in ways])


def test_equal_prompts_are_computed_once(model):
    seen = []
    hook = model.register_forward_pre_hook(lambda _, __, given: seen.append(given["input_ids"]), with_kwargs=True)
    for kind in (TableDecoder, PaddedDecoder):
        kind(model, PROMPTS, 4, 0).prefill()
    hook.remove()
    assert [len(ids) for ids in seen] == [4, 4]


def test_blocks_hold_neighbours_of_like_length():
    prompts = [[number] * length for number, length in enumerate((2, 3, 3, 4, 9, 30))]
    assert list(blocks_of_like_length(prompts, tokens=9)) == [(0, 3), (3, 4), (4, 5), (5, 6)]
    assert list(blocks_of_like_length([[1, 2, 3]] * 9 + [[4, 5, 6]], tokens=6)) == [(0, 10)]
    many = [[number] * 50 for number in range(100)]
    found = list(blocks_of_like_length(many))
    assert [start for start, _ in found[1:]] == [stop for _, stop in found[:-1]]
    assert (found[0][0], found[-1][1]) == (0, 100)
    assert all((stop - start) * 50 <= BLOCK_TOKENS for start, stop in found)


def test_repetition_is_found_and_padding_comes_first():
    assert distinct([[1], [2]], CPU) == ([[1], [2]], None)
    kept, source = distinct([[1, 2], [3], [1, 2]], CPU)
    assert (kept, source.tolist()) == ([(1, 2), (3,)], [0, 1, 0])
    ids, mask = left_padded([[7], [8, 9]], 0, CPU)
    assert ids.tolist() == [[0, 7], [8, 9]]
    assert mask.tolist() == [[False, True], [True, True]]
