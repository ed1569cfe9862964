from pathlib import Path

import pytest
import torch

from bench.peers.models import EOS, PAD, SIZES, make_sequences, write_policy
from rlhf.models import count_parameters, load_policy

TOY = SIZES["T"]


def chances(folder: Path) -> torch.Tensor:
    policy = load_policy(folder, device="cpu")
    ids = torch.randint(2, TOY.vocabulary, (8, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return policy(input_ids=ids).logits.softmax(dim=-1).mean(dim=(0, 1))


def test_responses_end_as_often_as_asked_for(tmp_path: Path) -> None:
    found = chances(write_policy(TOY, tmp_path, end_chance=0.1))
    assert float(found[EOS]) == pytest.approx(0.1, rel=0.25)
    assert float(found[PAD]) < 1e-4


def test_responses_may_never_end(tmp_path: Path) -> None:
    found = chances(write_policy(TOY, tmp_path, end_chance=0.0))
    assert float(found[EOS]) < 1e-4


def test_sequences_are_ragged_within_their_bounds_and_end() -> None:
    found = make_sequences(TOY, 200, pairs=True, seed=5)
    prompts, answers = [len(one.prompt) for one in found], [side for one in found for side in (one.response, one.other)]
    assert (min(prompts), max(prompts)) == TOY.prompt
    assert (min(map(len, answers)), max(map(len, answers))) == TOY.response
    assert all(answer[-1] == EOS and EOS not in answer[:-1] and PAD not in answer for answer in answers)
    assert make_sequences(TOY, 200, pairs=True, seed=5) == found
    assert make_sequences(TOY, 200, pairs=True, seed=6) != found


def test_the_sizes_are_what_they_are_called(tmp_path: Path) -> None:
    for name, wanted in (("M", 8.3e6), ("S", 0.9e6)):
        policy = load_policy(write_policy(SIZES[name], tmp_path / name), device="cpu")
        assert count_parameters(policy) == pytest.approx(wanted, rel=0.03)
