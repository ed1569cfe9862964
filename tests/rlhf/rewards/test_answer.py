"""The text of responses as they lie in a batch."""

from rlhf.batches import collate
from rlhf.rewards.answer import response_texts
from rlhf.tokenizer import encode_response, train_tokenizer


def test_texts_end_at_the_first_stop_and_leave_prompt_and_padding_out():
    tokenizer = train_tokenizer(["I found it. Where is it?"] * 4, vocab_size=280)
    whole, longer = encode_response(tokenizer, "I found it."), encode_response(tokenizer, "Where is it? Where?")
    batch = collate([[5, 6, 7], [8]], [whole, longer[:-1]], pad_id=tokenizer.pad_token_id)
    assert response_texts(batch, tokenizer, []) == ["I found it.", "Where is it? Where?"]
    # another stop token ends a text too
    assert response_texts(batch, tokenizer, [whole[1]])[0] == tokenizer.decode(whole[:1])
