"""Answers piece by piece, from a small real policy."""

import queue

import pytest

from rlhf.models import build_policy, save_policy
from rlhf.tokenizer import train_tokenizer
from tasks.answering import REPLACEMENT, Answer, Answerer, Options, Piece, TooLong, held_back
from tests.registry_project import TEXTS

ASK = [{"role": "user", "content": TEXTS[0]}]


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Answerer:
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300)
    save_policy(build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=16, context=96), tokenizer, folder)
    return Answerer(folder)


def answered(answerer: Answerer, options: Options) -> tuple[str, Answer]:
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    ids, answer = answerer.prepare(ASK, pieces)
    answerer.run(ids, answer, options)
    texts = []
    while isinstance(piece := pieces.get_nowait(), str):
        texts.append(piece)
    assert piece is None, piece
    return "".join(texts), answer


def test_the_pieces_are_what_the_model_says_at_once(answerer: Answerer) -> None:
    for seed in range(4):
        text, answer = answered(answerer, Options(max_tokens=20, seed=seed))
        assert answer.completion_tokens <= 20
        assert answer.finish_reason == ("length" if answer.completion_tokens == 20 else "stop")
        again, _ = answered(answerer, Options(max_tokens=20, seed=seed))
        assert again == text
    greedy, _ = answered(answerer, Options(max_tokens=12, temperature=0.0))
    assert greedy == answerer.policy.answer([ASK], {"seed": 0, "temperature": 0.0, "max_new_tokens": 12})[0]


def test_a_cancelled_answer_ends_soon(answerer: Answerer) -> None:
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    ids, answer = answerer.prepare(ASK, pieces)
    answer.cancelled.set()
    answerer.run(ids, answer, Options(max_tokens=50))
    assert answer.completion_tokens <= 1


def test_a_conversation_without_room_for_an_answer_is_refused(answerer: Answerer) -> None:
    with pytest.raises(TooLong, match="context of 96"):
        answerer.prepare([{"role": "user", "content": "order " * 200}], queue.SimpleQueue())


def test_what_may_still_change_is_held_back() -> None:
    assert held_back("hello", []) == 0
    assert held_back(f"caf{REPLACEMENT}", []) == 1
    assert held_back("the en", ["end", "never"]) == 2
    assert held_back("the ", ["end"]) == 0
    assert held_back("n", ["end"]) == 0
