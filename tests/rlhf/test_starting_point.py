from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.errors import BadInput
from rlhf.models import forbidden_ids, save_policy
from rlhf.starting_point import Size, from_base, from_scratch
from rlhf.tokenizer import pad_of, stop_ids

RECORDS = [{"prompt": [{"role": "user", "content": "Where is it?"}], "response": "I found order 202."}] * 4
SIZE = Size(vocab_size=290, hidden=16, layers=1, heads=2, intermediate=16, context=32)


def test_from_scratch_learns_a_vocabulary_and_builds_to_size():
    tokenizer, policy = from_scratch(RECORDS, SIZE)
    assert len(tokenizer) <= 290
    assert policy.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert policy.config.num_hidden_layers == 1


def test_a_local_base_model_is_found_by_its_name(tmp_path):
    tokenizer, policy = from_scratch(RECORDS, SIZE)
    save_policy(policy, tokenizer, tmp_path / "mine")
    for name in ("mine", "data/base/mine"):
        _, again = from_base(name, revision=None, base=tmp_path, device="cpu")
        ids = torch.tensor([[5, 6, 7]])
        assert torch.equal(again(ids).logits, policy(ids).logits)


def test_an_absent_base_model_says_how_to_add_it(tmp_path):
    with pytest.raises(BadInput, match="--as mine"):
        from_base("mine", revision=None, base=tmp_path, device="cpu")


@pytest.mark.shared
def test_a_real_base_model_whose_pad_is_its_end_gets_another_pad(shared: Path):
    tokenizer, policy = from_base("stories260K", revision=None, base=shared / "models", device="cpu")
    original = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260K")
    assert pad_of(tokenizer) == 512
    assert policy.get_input_embeddings().weight.shape[0] == 513
    assert stop_ids(tokenizer, policy) == (1, 2)
    assert forbidden_ids(tokenizer, policy).nonzero().flatten().tolist() == [512]
    ids = tokenizer("Once upon a time", return_tensors="pt", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(policy(ids).logits[..., :512], original(ids).logits, atol=1e-5, rtol=0)
