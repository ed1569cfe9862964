import pytest
import torch

from rlhf.errors import BadInput
from rlhf.evaluation.judging import Scorer
from rlhf.models import build_policy, save_policy
from rlhf.normaliser import reference_moments
from rlhf.reward_model import RewardModel
from rlhf.tokenizer import train_tokenizer

PROMPTS = [[{"role": "user", "content": f"Order {number}?"}] for number in range(3)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tokenizer = train_tokenizer(["Order 1? I found order 1."] * 4, vocab_size=280)
    torch.manual_seed(0)
    policy = build_policy(tokenizer, hidden=16, layers=1, heads=2, intermediate=16, context=32)
    folder = tmp_path_factory.mktemp("sft")
    save_policy(policy, tokenizer, folder)
    model = RewardModel.from_policy(folder, pooling="mean")
    return policy, Scorer(model=model, tokenizer=tokenizer, batch=4, precision="float32")


def moments(setting, seed=0, **changes):
    policy, scorer = setting
    settings = {"samples": 10, "max_new_tokens": 6, "draws": torch.Generator().manual_seed(seed)}
    return reference_moments(scorer, policy, PROMPTS, **{**settings, **changes})


def test_moments_are_those_of_the_scores(setting, monkeypatch):
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    seen = []

    def fixed(self, prompts, responses):
        seen.append((prompts, responses))
        return values

    monkeypatch.setattr(Scorer, "score_ids", fixed)
    # mean 5.5; sample variance 82.5 / 9 = 9.1667, root 3.02765
    assert moments(setting) == (pytest.approx(5.5), pytest.approx(3.02765, abs=1e-5))
    prompts, responses = seen[0]
    # three prompts answered over and over until there are ten answers
    assert prompts[3] == prompts[0] == prompts[9]
    assert len(responses) == 10
    assert all(1 <= len(response) <= 6 for response in responses)


def test_equal_scores_have_unit_spread(setting, monkeypatch):
    monkeypatch.setattr(Scorer, "score_ids", lambda self, prompts, responses: [2.0] * len(responses))
    assert moments(setting) == (2.0, 1.0)


def test_one_seed_gives_one_normaliser(setting):
    assert moments(setting, seed=1) == moments(setting, seed=1)
    assert moments(setting, seed=1) != moments(setting, seed=2)


def test_no_room_for_an_answer_is_bad_input(setting):
    with pytest.raises(BadInput, match="lower max_new_tokens"):
        moments(setting, max_new_tokens=32)
