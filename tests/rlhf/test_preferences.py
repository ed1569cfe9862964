from rlhf.preferences import Pair, encode_pairs
from rlhf.tokenizer import encode_prompt, encode_response, train_tokenizer

PROMPT = [{"role": "user", "content": "Where is it?"}]


def test_pairs_keep_both_sides_and_the_label():
    tokenizer = train_tokenizer(["I found it. Where is it?"] * 4, vocab_size=280)
    record = {"prompt": PROMPT, "chosen": "I found it.", "rejected": "No.", "label": 0.5}
    prompt = encode_prompt(tokenizer, PROMPT)
    chosen, rejected = encode_response(tokenizer, "I found it."), encode_response(tokenizer, "No.")
    assert encode_pairs(tokenizer, [record], max_tokens=99) == [Pair(prompt, chosen, rejected, 0.5)]
    # room for one response token each
    short = encode_pairs(tokenizer, [record], max_tokens=len(prompt) + 1)
    assert short == [Pair(prompt, chosen[:1], rejected[:1], 0.5)]
    assert encode_pairs(tokenizer, [record], max_tokens=len(prompt)) == []
