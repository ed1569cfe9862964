"""Weighted sums of signals: the default is the reward model's bits, and timing changes nothing."""

import random
import threading
import time
from pathlib import Path

import pytest
import torch

from rlhf.batches import collate
from rlhf.errors import BadInput
from rlhf.reward_model import RewardModel
from rlhf.rewards.answer import response_texts
from rlhf.rewards.signals import Signals, build_signals
from rlhf.row_blocks import in_row_blocks
from rlhf.showcase import Question
from rlhf.tokenizer import encode_prompt, encode_response, load_tokenizer
from tests.rlhf.recipes import tiny_models as tiny

TEXTS = ["see", "the bee", "here be trees", "seethe", "tree"]
ASKED = [[{"role": "user", "content": f"tree {number}"}] for number in range(5)]


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny.write_reward(folder / "reward", tiny.write_sft(folder / "sft"))


@pytest.fixture(scope="module")
def rollout(reward):
    """A batch of five responses with their texts and questions, as the recipe has them."""
    tokenizer = load_tokenizer(reward)
    prompts = [encode_prompt(tokenizer, messages) for messages in ASKED]
    batch = collate(prompts, [encode_response(tokenizer, text) for text in TEXTS], pad_id=0)
    assert response_texts(batch, tokenizer, []) == TEXTS
    meta = [{"answer": "3"}] * 5
    return batch, TEXTS, [Question(*row) for row in zip(ASKED, prompts, meta, strict=True)]


def make(folder, weights, **changes):
    settings = {
        "rule_settings": {}, "reward_model": RewardModel.load(folder, device="cpu"), "reward": folder, "base": None,
        "combination": "mean", "uncertainty_coef": 1.0, "rows": 2, "precision": "float32",
        "device": torch.device("cpu"),
    }  # fmt: skip
    return build_signals(weights, **{**settings, **changes})


def test_the_default_is_the_reward_model_bit_for_bit(reward, rollout):
    model = RewardModel.load(reward, device="cpu")
    model.mean, model.std = 0.3, 1.7
    signals = make(reward, {"reward_model": 1.0}, reward_model=model)

    def alone(part):
        raw = model(part.input_ids, part.attention_mask, part.response_mask)
        return (raw - 0.3) / 1.7

    with torch.no_grad():
        expected = in_row_blocks(alone, rollout[0], 2)
    found = signals(*rollout)
    assert list(found) == ["reward_model", "total"]
    assert torch.equal(found["total"], expected)
    assert torch.equal(found["reward_model"], expected)
    # nothing reads text, so no thread was started
    assert not any(thread.name.startswith("reward") for thread in threading.enumerate())


def test_the_total_is_the_weighted_sum_and_every_signal_is_there(reward, rollout):
    # words: 1, 2, 3, 1, 1; one is free, 0.5 for each other
    weights = {"length": 2.0, "reward_model": 0.5, "forbidden_phrases": 1.0}
    rules = {"length": {"at_most": 1, "price": 0.5}, "forbidden_phrases": {"phrases": ["BEE"], "price": 3}}
    found = make(reward, weights, rule_settings=rules)(*rollout)
    assert list(found) == ["length", "reward_model", "forbidden_phrases", "total"]
    assert found["length"].tolist() == [0, -0.5, -1.0, 0, 0]
    assert found["forbidden_phrases"].tolist() == [0, -3, 0, 0, 0]
    by_hand = 0.5 * found["reward_model"] + torch.tensor([0.0, -1 - 3, -2, 0, 0])
    torch.testing.assert_close(found["total"], by_hand, atol=1e-6, rtol=0)


def test_a_weight_of_zero_measures_without_counting(reward, rollout):
    weights = {"reward_model": 1.0, "length": 0.0}
    found = make(reward, weights, rule_settings={"length": {"at_most": 1}})(*rollout)
    assert found["length"].any()
    assert torch.equal(found["total"], found["reward_model"])


def test_exact_answers_are_read_off_the_record(reward, rollout):
    batch, _, questions = rollout
    texts = ["#### 3", "#### 4", "3", "#### 3.0", "#### $3."]
    found = make(reward, {"exact_answer": 1.0})(batch, texts, questions)
    assert found["total"].tolist() == [1, 0, 0, 1, 1]
    with pytest.raises(
        BadInput, match=r"'exact_answer' failed on the response '#### 3' .*no text or number under meta"
    ):
        make(reward, {"exact_answer": 1.0})(batch, texts, [question._replace(meta={}) for question in questions])


def test_an_ensemble_is_combined_and_its_disagreement_told(reward, rollout, tmp_path):
    sft = reward.parent / "sft"
    for member in (0, 1):
        folder = tiny.write_reward(tmp_path / "both" / ("member-1" if member else ""), sft)
        model = RewardModel.load(folder, device="cpu")
        model.mean = float(member)  # the second says 1 less of everything
        model.save(folder, load_tokenizer(reward))
    one = make(reward, {"reward_model": 1.0})(*rollout)["total"]
    first = RewardModel.load(tmp_path / "both", device="cpu")
    for how, shift in (("mean", 0.5), ("worst", 1.0), ("uncertainty", 0.5 + 2 * 0.25)):
        signals = make(reward, {"reward_model": 1.0}, reward_model=first, reward=tmp_path / "both", combination=how,
                       uncertainty_coef=2.0)  # fmt: skip
        found = signals(*rollout)
        torch.testing.assert_close(found["total"], one - shift, atol=1e-6, rtol=0)
        torch.testing.assert_close(found["disagreement"], torch.full((5,), 0.5), atol=1e-6, rtol=0)


class Sleepy:
    """A function that takes a random time, drawn outside torch; its value depends on the text alone."""

    def __init__(self, seed):
        self.clock = random.Random(seed)

    def __call__(self, answer):
        time.sleep(self.clock.random() * 0.01)
        return len(answer.text) / 7

    def many(self, answers):
        return [self(answer) + 1 for answer in answers]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_neither_sleeps_nor_workers_change_a_bit(rollout, workers):
    quick = Signals(
        {"a": 0.3, "b": 0.7},
        functions={"a": lambda answer: len(answer.text) / 7},
        text_models={"b": lambda answers: [len(answer.text) / 7 + 1 for answer in answers]},
        workers=1,
    )
    sleepy = Sleepy(workers)
    slow = Signals({"a": 0.3, "b": 0.7}, functions={"a": sleepy}, text_models={"b": sleepy.many}, workers=workers)
    expected = quick(*rollout)
    # two batches under way at once, asked for in the other order
    first, second = slow.submit(*rollout), slow.submit(*rollout)
    for found in (second.result(), first.result()):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_submit_returns_before_the_signal_has_finished(rollout):
    gate = threading.Event()
    signals = Signals({"a": 1.0}, functions={"a": lambda answer: float(gate.wait(10))})
    pending = signals.submit(*rollout)
    gate.set()  # after submit: had it waited for the function, this would never come
    assert pending.result()["total"].tolist() == [1.0] * 5


def test_what_a_signal_is_told(rollout):
    batch, texts, questions = rollout
    seen = []
    signals = Signals({"a": 1.0}, functions={"a": lambda answer: seen.append(answer) or 0.0}, workers=1)
    signals(batch, texts, questions, ended=torch.tensor([True, False, True, True, True]))
    assert [answer.text for answer in seen] == TEXTS
    assert [answer.messages for answer in seen] == ASKED
    assert [answer.tokens for answer in seen] == batch.response_mask.sum(dim=1).tolist()
    assert [answer.ended for answer in seen] == [True, False, True, True, True]
    assert seen[0].meta == {"answer": "3"}


def test_the_first_failure_by_place_is_told_whatever_came_first(rollout):
    def fails(answer):
        if answer.text == "the bee":
            time.sleep(0.05)
            raise KeyError("slow")
        if answer.text == "tree":
            raise ValueError("quick")
        return 0.0

    with pytest.raises(BadInput, match=r"reward signal 'f' failed on the response 'the bee' \(KeyError: 'slow'\)"):
        Signals({"f": 1.0}, functions={"f": fails}, workers=4)(*rollout)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "3", True])
def test_what_is_no_finite_number_is_refused(rollout, value):
    with pytest.raises(BadInput, match=r"'f' gave .* for the response 'see', wanted a finite number"):
        Signals({"f": 1.0}, functions={"f": lambda answer: value})(*rollout)


def test_a_failing_model_is_one_sentence(rollout):
    def fails(answers):
        raise RuntimeError("out of\nmemory")

    with pytest.raises(BadInput, match=r"'m' failed on the responses \(RuntimeError: out of memory\)"):
        Signals({"m": 1.0}, text_models={"m": fails})(*rollout)


def test_a_row_without_a_text_is_refused(rollout):
    batch, texts, questions = rollout
    with pytest.raises(ValueError, match="got 4 texts and 5 questions, wanted 5 of each"):
        Signals({"f": 1.0}, functions={"f": lambda answer: 0.0})(batch, texts[:4], questions)
    with pytest.raises(ValueError, match="nothing is known of g"):
        Signals({"g": 1.0})


@pytest.mark.parametrize(
    ("weights", "changes", "sentence"),
    [
        ({}, {}, "with a finite weight that is not 0"),
        ({"charm": 1.0}, {}, "no such signal; there are reward_model, exact_answer"),
        ({"reward_model": 1.0}, {"reward_model": None}, "no reward model was loaded"),
        ({"reward_model": 1.0}, {"combination": "best"}, "wanted one of mean, worst, uncertainty"),
        ({"model:none": 1.0}, {}, r"no folder data/base/none; add one with `ratchet ingest"),
        ({"model:../x": 1.0}, {"base": Path("data")}, "no folder"),
    ],
)  # fmt: skip
def test_names_that_stand_for_nothing_are_bad_input(reward, weights, changes, sentence):
    with pytest.raises(BadInput, match=sentence):
        make(reward, weights, **changes)


def test_a_model_with_its_own_tokenizer_reads_text(reward, rollout, tmp_path):
    sft = tiny.write_sft(tmp_path / "sft", texts=("quite other words than here", "trees and bees"), seed=3)
    tiny.write_reward(tmp_path / "base" / "other", sft)
    found = make(reward, {"model:other": 1.0}, base=tmp_path / "base", reward_model=None)(*rollout)
    model, tokenizer = RewardModel.load(tmp_path / "base" / "other", device="cpu"), load_tokenizer(sft)
    assert tokenizer.get_vocab() != load_tokenizer(reward).get_vocab()
    for row, (messages, text) in enumerate(zip(ASKED, TEXTS, strict=True)):
        ids = collate([encode_prompt(tokenizer, messages)], [encode_response(tokenizer, text)], pad_id=0)
        alone = model.score(ids.input_ids, ids.attention_mask, ids.response_mask).detach()
        torch.testing.assert_close(found["total"][row : row + 1], alone, atol=1e-6, rtol=0)
