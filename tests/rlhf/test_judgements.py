"""Judgements: from records, from pairs, and mismatched within a batch."""

from rlhf.judgements import Judgement, encode_judgements, judgements_of_pairs, mismatched
from rlhf.pair_logprobs import Answer
from rlhf.preferences import Pair
from rlhf.tokenizer import encode_prompt, encode_response, train_tokenizer

PROMPT = [{"role": "user", "content": "Where is it?"}]


def test_records_become_token_ids_and_long_ones_are_left_out():
    tokenizer = train_tokenizer(["I found it. Where is it?"] * 4, vocab_size=280)
    record = {"prompt": PROMPT, "response": "I found it.", "good": False}
    prompt, response = encode_prompt(tokenizer, PROMPT), encode_response(tokenizer, "I found it.")
    both = len(prompt) + len(response)
    assert encode_judgements(tokenizer, [record], max_tokens=both) == [Judgement(prompt, response, False)]
    assert encode_judgements(tokenizer, [record], max_tokens=both - 1) == []
    # An empty answer is its end token.
    empty = encode_judgements(tokenizer, [{**record, "response": ""}], max_tokens=both)
    assert empty == [Judgement(prompt, [tokenizer.eos_token_id], False)]


def test_a_pair_is_a_good_and_a_bad_answer_and_a_tie_is_none():
    pairs = [Pair([1], [2], [3], 1.0), Pair([1], [4], [5], 0.5), Pair([1], [6], [7], 0.2)]
    assert judgements_of_pairs(pairs) == [
        Judgement([1], [2], True), Judgement([1], [3], False), Judgement([1], [6], False), Judgement([1], [7], True),
    ]  # fmt: skip


def test_answers_move_to_the_prompt_before_as_the_paper_shifts_them():
    batch = [Judgement([1], [10], True), Judgement([2], [20], False), Judgement([3], [30], True)]
    assert mismatched(batch, max_tokens=9) == [Answer([1], [20]), Answer([2], [30]), Answer([3], [10])]


def test_the_other_half_of_a_pair_is_no_mismatch():
    batch = [Judgement([1], [10], True), Judgement([1], [11], False), Judgement([2], [20], True)]
    assert mismatched(batch, max_tokens=9) == [Answer([1], [20]), Answer([1], [20]), Answer([2], [10])]
    assert mismatched(batch[:2], max_tokens=9) == []
    assert mismatched([], max_tokens=9) == []


def test_an_answer_that_does_not_fit_behind_another_prompt_is_cut():
    batch = [Judgement([1, 1, 1], [10], True), Judgement([2], [20, 21, 22], False)]
    assert mismatched(batch, max_tokens=4) == [Answer([1, 1, 1], [20]), Answer([2], [10])]
