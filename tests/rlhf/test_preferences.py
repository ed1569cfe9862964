import pytest

from rlhf.preferences import Pair, Ranking, encode_pairs, encode_rankings, score_gap
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


def test_rankings_keep_all_answers_with_their_places_and_scores():
    tokenizer = train_tokenizer(["I found it. Where is it?"] * 4, vocab_size=280)
    texts = ["No.", "I found it.", "Where?"]
    record = {"prompt": PROMPT, "responses": texts, "ranks": [2, 1, 2], "scores": [1, 4.5, 1]}
    prompt, ids = encode_prompt(tokenizer, PROMPT), [encode_response(tokenizer, text) for text in texts]
    found = encode_rankings(tokenizer, [record, {**record, "scores": None}], max_tokens=99)
    assert found == [
        Ranking(prompt, ids, [2, 1, 2], [1.0, 4.5, 1.0]),
        Ranking(prompt, ids, [2, 1, 2], [0.0] * 3),
    ]
    assert found[0].longest == len(prompt) + max(map(len, ids))
    # room for one token of each answer; then for none
    assert encode_rankings(tokenizer, [record], max_tokens=len(prompt) + 1)[0].responses == [row[:1] for row in ids]
    assert encode_rankings(tokenizer, [record], max_tokens=len(prompt)) == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "label", "gap"),
    [
        (4.0, 1.5, 1.0, 2.5),
        (4, 1.5, 0.8, 2.5),
        (1.5, 4.0, 1.0, 0.0),  # the scores say otherwise than the label
        (4.0, 1.5, 0.5, 0.0),  # a tie has no margin
        (4.0, None, 1.0, 0.0),
        (None, 1.5, 1.0, 0.0),
    ],
)
def test_the_gap_is_how_far_the_better_answer_was_scored_ahead(chosen, rejected, label, gap):
    assert score_gap({"score_chosen": chosen, "score_rejected": rejected, "label": label}) == gap


def test_a_pair_carries_its_gap():
    tokenizer = train_tokenizer(["I found it. Where is it?"] * 4, vocab_size=280)
    record = {"prompt": PROMPT, "chosen": "I found it.", "rejected": "No.", "label": 1.0}
    (pair,) = encode_pairs(tokenizer, [{**record, "score_chosen": 7, "score_rejected": 3}], max_tokens=99)
    assert pair.gap == 4.0
    assert pair.longest == len(pair.prompt) + len(pair.chosen)
    assert encode_pairs(tokenizer, [record], max_tokens=99)[0].gap == 0.0
