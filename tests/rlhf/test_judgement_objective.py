"""Judgements as KTO reads and measures them."""

import copy
import dataclasses

import pytest
import torch

from rlhf.judgement_objective import JudgementObjective
from rlhf.logprob_cache import LogprobCache
from rlhf.models import forbidden_ids, load_policy
from rlhf.pair_logprobs import Answer
from rlhf.pair_objective import Tokens
from rlhf.tokenizer import load_tokenizer, pad_of
from tests.rlhf.recipes import tiny_models as tiny
from tests.rlhf.recipes.tiny_dpo import CONFIG, pair, write_split

PAIRS = [pair(0, "e", "b"), pair(1, "see", "hr")]
SINGLE = [{"id": "j", "prompt": [{"role": "user", "content": "be"}], "response": "tree", "good": True}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judgements")
    tiny.write_sft(folder / "sft")
    tiny.write_sft(folder / "moved", seed=1)
    write_split(folder, "pairs", PAIRS, PAIRS)
    write_split(folder, "judgements", SINGLE)
    return folder


@pytest.fixture(scope="module")
def policy(folder):
    return load_policy(folder / "moved", device="cpu")


@pytest.fixture(scope="module")
def objective(folder):
    """One judgement and two pairs, with a reference that is another model than the policy."""
    tokenizer, start = load_tokenizer(folder / "sft"), load_policy(folder / "sft", device="cpu")
    tokens = Tokens(forbidden_ids(tokenizer, start), pad_of(tokenizer))
    config = dataclasses.replace(CONFIG, objective="kto", undesirable_weight=2.0)
    paths = {"pairs": folder / "pairs", "judgements": folder / "judgements"}
    found = JudgementObjective(config, tokenizer, tokens, **paths, max_tokens=60)
    cache = LogprobCache(folder / "sft", tokens.forbidden, rows=8, precision="float32")
    found.ask_reference(start, [[0, 1, 2], [3, 4]], cache)
    return found


def test_judgements_come_before_the_two_of_each_pair(objective):
    assert [one.good for one in objective.data["train"].usable] == [True, True, False, True, False]
    assert objective.data["train"].counts == {
        "pairs": 2, "ties": 0, "too_long": 0, "judgements": 1, "desirable": 3, "undesirable": 2,
    }  # fmt: skip
    assert objective.refusal() is None
    assert len(objective.lengths("train")) == 5


def test_the_reference_is_asked_about_the_mismatched_answers_of_every_batch(objective):
    # Batch 1: the single prompt and a pair; batch 2: both halves of one pair, which have no other prompt.
    assert [len(part) for part in objective.reference["train_mismatched"]] == [3, 0]
    assert [len(part) for part in objective.reference["dev_mismatched"]] == [4]
    assert [len(part) for part in objective.reference["test_mismatched"]] == [4]


def test_the_anchor_is_the_drift_of_a_whole_batch_and_zero_without_another_prompt(objective, policy):
    anchor = objective.anchor(policy, "train", [0, 1, 2], 0)
    answers = objective._mismatched("train", [0, 1, 2])
    ratio = (objective._logprobs(policy, answers) - objective.reference["train_mismatched"][0]).mean()
    assert anchor.item() == pytest.approx(max(0.0, ratio.item()), abs=1e-5)
    assert not anchor.requires_grad
    assert objective.anchor(policy, "train", [3, 4], 1).item() == 0


def test_parts_of_a_batch_add_up_and_classes_are_averaged_by_their_own_number(objective, policy):
    anchor = torch.tensor(0.25)
    whole, sums = objective.compare(policy, "train", [0, 1, 2], anchor, total=3)
    parts = [objective.compare(policy, "train", index, anchor, total=3) for index in ([0, 2], [1])]
    assert sum(part[0].item() for part in parts) == pytest.approx(whole.item(), abs=1e-5)
    for name, value in sums.items():
        assert sum(part[1][name] for part in parts) == pytest.approx(value, abs=1e-4)
    means = objective.means(sums, 1)
    assert means["z0"] == pytest.approx(0.25)
    assert means["desirable_reward"] == pytest.approx(sums["desirable_reward"] / 2)
    assert means["margin"] == pytest.approx(means["desirable_reward"] - means["undesirable_reward"])
    assert means["desirable_reward"] == pytest.approx(0.1 * means["desirable_change"], rel=1e-4)


def test_a_class_without_a_member_has_no_mean(objective, policy):
    _, sums = objective.compare(policy, "train", [0, 1], torch.tensor(0.0), total=2)
    means = objective.means(sums, 1)
    assert "desirable_reward" in means
    assert "undesirable_reward" not in means
    assert "margin" not in means


@pytest.mark.parametrize(("anchor", "accuracy"), [(0.0, 2 / 3), (1.5, 1 / 3), (2.5, 2 / 3), (9.0, 1 / 3)])
def test_accuracy_is_the_share_on_the_right_side_of_the_anchor(objective, policy, anchor, accuracy):
    # Log-ratios made to be 1, 3 (good) and 2 (bad).
    answers = [Answer(one.prompt, one.response) for one in objective.data["train"].usable]
    known = copy.copy(objective)
    known.reference = {"train": objective._logprobs(policy, answers) - torch.tensor([1.0, 3.0, 2.0, 0.0, 0.0])}
    _, sums = known.compare(policy, "train", [0, 1, 2], torch.tensor(anchor), total=3)
    assert sums["accuracy"] == pytest.approx(accuracy)
