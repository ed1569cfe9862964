"""Answering one conversation."""

from pathlib import Path

import pytest
import torch

from rlhf.errors import BadInput
from rlhf.evaluation.answers import Policy
from rlhf.evaluation.reply import reply

ASK = [{"role": "user", "content": "My lamp is broken."}]
SETTINGS = {"temperature": 1.0, "max_new_tokens": 6, "greedy": False, "seed": 3}


@pytest.fixture(scope="module")
def policy(folders: dict[str, Path]) -> Policy:
    return Policy.load(folders["sft"], device=torch.device("cpu"))


def test_the_same_seed_says_the_same(policy: Policy) -> None:
    first, second = reply(policy, ASK, **SETTINGS), reply(policy, ASK, **SETTINGS)
    assert first == second
    assert 1 <= first.tokens <= 6
    assert first.forgotten == 0
    others = {reply(policy, ASK, **{**SETTINGS, "seed": seed}).text for seed in range(4)}
    assert len(others) > 1


def test_greedy_needs_no_seed(policy: Policy) -> None:
    greedy = {**SETTINGS, "greedy": True}
    assert len({reply(policy, ASK, **{**greedy, "seed": seed}) for seed in range(3)}) == 1


def test_a_long_conversation_forgets_its_oldest_turns_but_not_the_system_message(policy: Policy) -> None:
    turn = [{"role": "user", "content": "lamp " * 8}, {"role": "assistant", "content": "desk " * 8}]
    system = [{"role": "system", "content": "Plus member."}]
    found = reply(policy, [*system, *turn * 6, *ASK], **SETTINGS)
    assert found.forgotten > 0
    assert found.forgotten % 2 == 0
    kept = [*system, *(turn * 6)[found.forgotten :], *ASK]
    assert reply(policy, kept, **SETTINGS).text == found.text


def test_a_message_beyond_the_context_is_one_sentence(policy: Policy) -> None:
    with pytest.raises(BadInput, match="shorten it"):
        reply(policy, [{"role": "user", "content": "lamp " * 300}], **SETTINGS)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"max_new_tokens": 0}])
def test_settings_out_of_range(policy: Policy, wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="more than 0"):
        reply(policy, ASK, **{**SETTINGS, **wrong})
