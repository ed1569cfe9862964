from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from rlhf import logprobs
from rlhf.batches import collate
from rlhf.device import autocast
from rlhf.packed_attention import fits, hidden_states
from rlhf.packing import pack
from rlhf.sizing import activations
from rlhf.sizing.model_shape import ModelShape
from rlhf.sizing.published import PUBLISHED
from rlhf.sizing.setting import Role, setting_of

SHAPE = ModelShape(
    name="x", hidden=64, layers=4, heads=4, kv_heads=2, head_width=16, intermediate=176, vocabulary=96, tied=True
)
ROWS, LENGTH = 4, 48


def kept_by_torch(precision: str) -> int:
    """Bytes that a forward pass saves for the backward pass, weights and their copies left out."""
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=176,
        vocab_size=96, max_position_embeddings=LENGTH, attn_implementation="sdpa",
    )  # fmt: skip
    trunk = LlamaModel(config).eval()
    weights = {weight.numel() for weight in trunk.parameters()} | {weight.data_ptr() for weight in trunk.parameters()}
    batch = collate([[5] * (LENGTH // 2)] * ROWS, [[row + 6] * (LENGTH // 2) for row in range(ROWS)], pad_id=0)
    batch.input_ids[:, 0] = torch.arange(ROWS) + 20  # no prefix is shared
    assert fits(trunk)
    found: dict[int, int] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.is_floating_point() and tensor.numel() not in weights and storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), autocast(trunk.device, precision):
        kept = hidden_states(trunk, pack(batch.input_ids, batch.attention_mask))
        assert kept.shape == (ROWS * LENGTH, 64)
        return sum(found.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kept_activations_are_what_torch_saves(precision: str) -> None:
    setting = setting_of(
        "sft", SHAPE, precision=precision, prompt_tokens=LENGTH // 2, response_tokens=LENGTH // 2, batch=ROWS,
        micro_batch=ROWS,
    )  # fmt: skip
    assert activations.kept(SHAPE, setting) == pytest.approx(kept_by_torch(precision), rel=0.05)


def ways() -> Iterator[float]:
    for changes in ({}, {"activation_checkpointing": True}):
        yield activations.kept(PUBLISHED["LLaMA-7B"], setting_of("sft", PUBLISHED["LLaMA-7B"], **changes))


def test_checkpointing_keeps_the_inputs_of_blocks_and_one_block() -> None:
    without, having = ways()
    # LLaMA-7B, 1024 tokens, bf16 products: a block keeps 26h + 6h + 4h + 8 * 11008 bytes, its input 4h, the end 12h.
    block = 36 * 4096 + 8 * 11008
    assert without == 1024 * (32 * block + 12 * 4096)
    assert having == 1024 * (32 * 4 * 4096 + 12 * 4096)
    llama = PUBLISHED["LLaMA-7B"]
    assert activations.again(llama, setting_of("sft", llama, activation_checkpointing=True)) == 1024 * block
    assert activations.again(llama, setting_of("sft", llama)) == 0


def test_frozen_norms_keep_less() -> None:
    llama = PUBLISHED["LLaMA-7B"]
    setting = setting_of("sft", llama)
    # Two norms of a block and the last one keep h numbers of 4 bytes less.
    less = activations.kept(llama, setting) - activations.kept(llama, setting, adapted=True)
    assert less == 1024 * (32 * 2 + 1) * 4 * 4096


def test_logits_are_reckoned_in_the_chunks_of_the_loss() -> None:
    assert activations.CHUNK == logprobs.CHUNK_ELEMENTS
    setting = setting_of("sft", SHAPE, response_tokens=10, micro_batch=2, precision="float32")
    head, states = 96 * 64, 2 * 4 * 20 * 64
    whole, adapted = Role("policy", 9, 9, head), Role("policy", 9, 1, head)
    # 20 tokens: the gradient of the head, where it has one, is more than a second copy of the logits.
    assert activations.loss(whole, setting) == (4 * 20 * 96 + 4 * head + states, 4 * 20 * 96 + states)
    assert activations.loss(adapted, setting)[0] == 8 * 20 * 96 + states
    large = setting_of("sft", SHAPE, response_tokens=2**20, precision="float32")
    assert activations.loss(whole, large)[0] == 8 * 2**24 + 2 * 4 * 2**20 * 64
    assert activations.loss(Role("value model", 1, 1, 0), setting) == (0.0, 0.0)


def test_the_cache_has_keys_and_values_of_every_position() -> None:
    # 2 * 32 heads of a block * 16 wide * 4 bytes, 5 blocks (one is copied), 3 rows, 1024 positions
    setting = setting_of("ppo", SHAPE, precision="float32")
    assert activations.cache(SHAPE, setting, 3) == 2 * 4 * 32 * 5 * 3 * 1024
    half = setting_of("ppo", SHAPE)
    assert activations.cache(SHAPE, half, 3) == (4 + 2) * 32 * 5 * 3 * 1024
