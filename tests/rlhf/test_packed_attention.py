import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf.packed_attention import fits, hidden_states, to_batch
from rlhf.packing import pack

SMALL = {
    "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 32,
}  # fmt: skip
PACKED = {
    "llama": LlamaConfig(**SMALL, num_key_value_heads=4),
    "llama with shared keys": LlamaConfig(**SMALL, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    "gemma": GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8),
    "gpt2": GPT2Config(vocab_size=23, n_embd=16, n_layer=2, n_head=4, n_positions=32),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "phi": PhiConfig(**SMALL),
}
PADDED = {
    "sliding window": MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=2),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, attn_logit_softcapping=None),
    "bloom": BloomConfig(vocab_size=23, hidden_size=16, n_layer=2, n_head=4),
}
ROWS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 11], [12, 6], [5, 6, 7, 8, 9, 10, 13, 14, 3, 4]]


def trunk_of(config):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.base_model


def batch():
    width = max(map(len, ROWS))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in ROWS])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in ROWS]).unsqueeze(1)


def both(trunk):
    """States and gradients of a weighted sum of them, from padded rows and from nodes."""
    ids, mask = batch()
    weights = torch.randn(*ids.shape, trunk.config.hidden_size, generator=torch.Generator().manual_seed(2))
    found = []
    for packed in (None, pack(ids, mask)):
        trunk.zero_grad()
        if packed is None:
            states = trunk(input_ids=ids, use_cache=False).last_hidden_state
        else:
            states = to_batch(hidden_states(trunk, packed), packed)
        (states * weights)[mask].sum().backward()
        found.append((states.detach()[mask], [p.grad.clone() for p in trunk.parameters() if p.grad is not None]))
    return found


@pytest.mark.parametrize("name", PACKED)
def test_nodes_give_the_states_and_gradients_of_padded_rows(name):
    trunk = trunk_of(PACKED[name])
    assert fits(trunk)
    (wanted, slopes), (found, other_slopes) = both(trunk)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert len(slopes) == len(other_slopes) > 10
    for one, other in zip(slopes, other_slopes, strict=True):
        assert (one - other).abs().max() <= 1e-4 * max(1.0, float(one.abs().max()))


@pytest.mark.parametrize("name", PADDED)
def test_other_kinds_of_attention_are_left_to_padded_rows(name):
    assert not fits(trunk_of(PADDED[name]))


def test_a_model_that_would_ignore_the_packing_is_found_out_by_the_probe():
    trunk = trunk_of(PACKED["llama"])
    plain = trunk.forward

    def deaf(input_ids, position_ids=None, attention_mask=None, packing=None, **kwargs):
        return plain(input_ids=input_ids, use_cache=False)

    trunk.forward = deaf
    assert not fits(trunk)


def test_second_derivatives_go_through_as_trust_regions_need_them():
    trunk = trunk_of(PACKED["llama"])
    ids, mask = batch()
    weight = trunk.layers[0].self_attn.v_proj.weight
    found = []
    for packed in (None, pack(ids, mask)):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            if packed is None:
                states = trunk(input_ids=ids, use_cache=False).last_hidden_state
            else:
                states = to_batch(hidden_states(trunk, packed), packed)
            (slope,) = torch.autograd.grad((states[mask] ** 2 * torch.arange(16)).sum(), weight, create_graph=True)
            found.append(torch.autograd.grad((slope**2).sum(), weight)[0])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[1] / found[0].abs().max(), found[0] / found[0].abs().max(), rtol=0, atol=1e-3)


def test_results_do_not_depend_on_what_else_is_in_the_batch():
    trunk = trunk_of(PACKED["llama"])
    ids, mask = batch()
    with torch.no_grad():
        whole, alone = pack(ids, mask), pack(ids[2:3, :2], mask[2:3, :2])
        together = to_batch(hidden_states(trunk, whole), whole)[2, :2]
        single = to_batch(hidden_states(trunk, alone), alone)[0]
    torch.testing.assert_close(together, single, rtol=1e-5, atol=1e-5)
