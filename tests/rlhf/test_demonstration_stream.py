"""Demonstrations by the step: every one comes once in a lap, in parts that hold them all."""

import pytest
import torch

from rlhf.demonstration_stream import DemonstrationStream
from rlhf.errors import BadInput
from rlhf.tokenizer import train_tokenizer
from tests.rlhf.recipes.tiny_models import write_rows


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["ab ba abba"], vocab_size=270)


def stream(folder, tokenizer, **changes):
    rows = [{"prompt": [{"role": "user", "content": "a"}], "response": "b" * (n + 1)} for n in range(6)]
    write_rows(folder / "train.jsonl", rows)
    settings = {"max_tokens": 40, "batch": 3, "micro_batch": 2, "seed": 1, "device": torch.device("cpu"), **changes}
    return DemonstrationStream(folder, tokenizer, **settings)


def lengths(parts):
    return [length for part in parts for length in part.response_mask.sum(dim=1).tolist()]


def test_two_steps_make_a_lap_of_six(tmp_path, tokenizer):
    found = stream(tmp_path, tokenizer)
    laps = lengths(found.parts(0)) + lengths(found.parts(1))
    assert sorted(laps) == sorted(len(example.response) for example in found.examples)
    assert [len(part.input_ids) for part in found.parts(0)] == [2, 1]


def test_a_step_is_a_function_of_its_number_and_the_seed(tmp_path, tokenizer):
    first, again = stream(tmp_path, tokenizer), stream(tmp_path, tokenizer)
    assert torch.equal(first.parts(5)[0].input_ids, again.parts(5)[0].input_ids)
    other = stream(tmp_path, tokenizer, seed=2)
    assert any(lengths(first.parts(step)) != lengths(other.parts(step)) for step in range(4))


def test_nothing_that_fits_and_too_few_for_the_ranks_are_refused(tmp_path, tokenizer, monkeypatch):
    with pytest.raises(BadInput, match=r"no demonstration fits 1 tokens; set ppo\.ptx_coef: 0"):
        stream(tmp_path, tokenizer, max_tokens=1)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(BadInput, match="ptx_batch is 3, wanted a multiple of the 4 ranks"):
        stream(tmp_path, tokenizer)
