"""Which weights stay whole; what happens to the others needs ranks and is in `test_deepspeed_engine`."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.reward_model import RewardModel
from rlhf.shared_value import PolicyWithValue
from rlhf.split_weights import _head_weights
from tests.rlhf.recipes import tiny_models as tiny


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_matrix_stays_whole(tied):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=8, tie_word_embeddings=tied))
    for module in (policy, PolicyWithValue(policy)):
        found = _head_weights(module)
        assert len(found) == 1
        assert found[0] is policy.lm_head.weight
    assert (found[0] is policy.model.embed_tokens.weight) == tied


def test_a_reward_model_has_no_matrix_over_the_vocabulary(tmp_path):
    model = RewardModel.from_policy(tiny.write_sft(tmp_path / "sft"), pooling="last", device="cpu")
    assert all(weight.numel() < 100 for weight in _head_weights(model))
