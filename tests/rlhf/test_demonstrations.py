import pytest
import torch

from rlhf.demonstrations import Example, encode, held_out_loss, to_batch
from rlhf.logprobs import response_logprobs
from rlhf.models import build_policy, forbidden_ids
from rlhf.tokenizer import encode_prompt, encode_response, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["I found order 202, the mug. Where is it?"] * 4, vocab_size=300)


def record(prompt, response):
    return {"prompt": [{"role": "user", "content": prompt}], "response": response}


def test_a_demonstration_is_its_prompt_and_its_response_with_the_end(tokenizer):
    one = record("Where is it?", "I found it.")
    result = encode(tokenizer, [one], max_tokens=100)
    expected = Example(encode_prompt(tokenizer, one["prompt"]), encode_response(tokenizer, "I found it."))
    assert result.examples == [expected]
    assert result.counts == {"records": 1, "tokens": len(expected.response), "truncated": 0, "dropped": 0}


def test_what_is_too_long_is_cut_or_dropped_and_counted(tokenizer):
    room = len(encode_prompt(tokenizer, record("Where is it?", "")["prompt"])) + 2
    rows = [record("Where is it?", "I found order 202, the mug."), record("Where is it? " * 9, "Yes.")]
    result = encode(tokenizer, rows, max_tokens=room)
    assert len(result.examples[0].response) == 2
    # a response that was cut off does not teach to stop
    assert tokenizer.eos_token_id not in result.examples[0].response
    assert result.counts == {"records": 1, "tokens": 2, "truncated": 1, "dropped": 1}


def test_held_out_loss_is_the_mean_over_tokens_however_it_is_batched(tokenizer):
    torch.manual_seed(0)
    policy = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=16, context=64)
    rows = [
        record("Where is it?", text) for text in ("I found it.", "Yes.", "I found order 202, the mug. Where is it?")
    ]
    examples = encode(tokenizer, rows, max_tokens=64).examples
    forbidden = forbidden_ids(tokenizer, policy)
    total, tokens = 0.0, 0
    for example in examples:
        batch = to_batch([example], tokenizer)
        logprobs = response_logprobs(policy, batch, temperature=1.0, forbidden=forbidden).logprobs
        total, tokens = total - float(logprobs.detach().sum()), tokens + len(example.response)
    for size in (1, 2, 8):
        loss = held_out_loss(policy, examples, tokenizer, forbidden, rows=size, precision="float32")
        assert loss == pytest.approx(total / tokens, rel=1e-5)


def test_nothing_held_out_is_refused(tokenizer):
    policy = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=16, context=64)
    with pytest.raises(ValueError, match="no examples"):
        held_out_loss(policy, [], tokenizer, forbidden_ids(tokenizer, policy), rows=2, precision="float32")
