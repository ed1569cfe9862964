"""The head is run alone only where that gives the model's own logits."""

from dataclasses import dataclass
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
)

from rlhf.adapters import Lora, add_adapter
from rlhf.lm_head import response_rows, runs_head_alone

SIZES = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass
class Batch:
    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def make(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def make_batch() -> Batch:
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    response = torch.tensor([[False, True, True, False], [False, False, False, True]])
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), response)


PLAIN = {
    "llama": LlamaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, num_key_value_heads=1, final_logit_softcapping=0.01),
    "gpt2": GPT2Config(vocab_size=19, n_embd=16, n_layer=1, n_head=2, n_positions=64),
}
# A scale or a divisor after the head, and (Roberta) layers between trunk and output matrix that no setting names.
OTHER = {
    "cohere": CohereConfig(**SIZES, logit_scale=0.25),
    "granite": GraniteConfig(**SIZES, logits_scaling=8.0),
    "roberta": RobertaConfig(**SIZES, is_decoder=True),
}


@pytest.mark.parametrize("name", PLAIN)
def test_known_kinds_run_the_head_at_response_positions_only(name: str) -> None:
    model = make(PLAIN[name])
    assert runs_head_alone(model)
    with torch.no_grad():
        assert response_rows(model, make_batch()).rows.shape == (3, 16)


@pytest.mark.parametrize("name", OTHER)
def test_other_kinds_fall_back_to_all_logits(name: str) -> None:
    model = make(OTHER[name])
    assert not runs_head_alone(model)
    with torch.no_grad():
        assert response_rows(model, make_batch()).rows.shape == (3, 19)


@pytest.mark.parametrize("name", [*PLAIN, *OTHER])
def test_rows_lead_to_the_logits_that_predict_each_response_token(name: str) -> None:
    model, batch = make((PLAIN | OTHER)[name]), make_batch()
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids).logits
        rows, to_logits, vocabulary, *_ = response_rows(model, batch)
        # Tokens (0, 1), (0, 2) and (1, 3) are predicted at (0, 0), (0, 1) and (1, 2).
        wanted = torch.stack([logits[0, 0], logits[0, 1], logits[1, 2]])
        assert vocabulary == 19
        assert torch.allclose(to_logits(rows), wanted, atol=1e-5)


# peft 0.21 asks transformers 5 for an attribute under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_around_the_model_falls_back() -> None:
    model = peft.get_peft_model(make(PLAIN["llama"]), peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert not runs_head_alone(model)
    with torch.no_grad():
        assert response_rows(model, make_batch()).rows.shape == (3, 19)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_an_adapter_inside_the_model_keeps_the_head_alone(name: str) -> None:
    plain, adapted = make(PLAIN[name]), add_adapter(make(PLAIN[name]), Lora(rank=2, alpha=4.0), seed=0)
    assert runs_head_alone(adapted)
    with torch.no_grad():
        wanted, found = response_rows(plain, make_batch()), response_rows(adapted, make_batch())
    assert found.rows.shape == (3, 16)
    # The adapter is 0 at the start, so all bits are those of the plain model.
    assert torch.equal(found.to_logits(found.rows), wanted.to_logits(wanted.rows))


@pytest.mark.parametrize("name", [*PLAIN, "cohere", "granite"])
def test_hidden_states_are_those_of_the_trunk(name: str) -> None:
    model, batch = make((PLAIN | OTHER)[name]), make_batch()
    with torch.no_grad():
        trunk = model.base_model(input_ids=batch.input_ids).last_hidden_state
        states = response_rows(model, batch, with_states=True).states
    wanted = torch.stack([trunk[0, 0], trunk[0, 1], trunk[1, 2]])
    assert states is not None
    assert torch.allclose(states, wanted, atol=1e-6)


def test_bad_batches_are_refused() -> None:
    model, batch = make(PLAIN["llama"]), make_batch()
    with pytest.raises(ValueError, match=r"response_mask has shape \(2, 3\) but input_ids has \(2, 4\)"):
        response_rows(model, Batch(batch.input_ids, batch.attention_mask, batch.response_mask[:, 1:]))
    with pytest.raises(ValueError, match="no response token"):
        response_rows(model, Batch(batch.input_ids, batch.attention_mask, torch.zeros_like(batch.response_mask)))
    with pytest.raises(ValueError, match="position 0"):
        response_rows(model, Batch(batch.input_ids, batch.attention_mask, batch.attention_mask))
