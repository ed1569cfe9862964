"""Combining reward models: values by hand, what an ensemble of one is, and folders of members."""

import shutil

import pytest
import torch

from rlhf.errors import BadInput
from rlhf.rewards.ensemble import combine, disagreement, load_ensemble, load_members, member_folder
from tests.rlhf.recipes import tiny_models as tiny

SCORES = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 3.0]])


def test_by_hand():
    # columns (1, 3, 5) and (0, 0, 3): means 3 and 1
    assert combine(SCORES, "mean", coef=9.0).tolist() == [3.0, 1.0]
    assert combine(SCORES, "worst", coef=9.0).tolist() == [1.0, 0.0]
    # variances (4 + 0 + 4) / 3 = 8/3 and (1 + 1 + 4) / 3 = 2; 3 - 0.5 * 8/3 = 5/3; 1 - 0.5 * 2 = 0
    found = combine(SCORES, "uncertainty", coef=0.5)
    torch.testing.assert_close(found, torch.tensor([5 / 3, 0.0]))
    torch.testing.assert_close(disagreement(SCORES), torch.tensor([8 / 3, 2.0]).sqrt())


@pytest.mark.parametrize("how", ["mean", "worst", "uncertainty"])
def test_one_member_is_itself_bit_for_bit(how):
    one = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(combine(one, how, coef=3.0), one[0])
    assert not disagreement(one).any()


def test_without_a_price_uncertainty_is_the_mean():
    assert torch.equal(combine(SCORES, "uncertainty", coef=0.0), combine(SCORES, "mean", coef=1.0))


def test_members_that_agree_are_each_of_them():
    same = torch.tensor([[0.5, -2.0]] * 4)
    for how in ("mean", "worst", "uncertainty"):
        assert torch.equal(combine(same, how, coef=7.0), same[0])


def test_neither_the_order_of_members_nor_other_answers_matter():
    for how in ("mean", "worst", "uncertainty"):
        whole = combine(SCORES, how, coef=0.5)
        torch.testing.assert_close(combine(SCORES.flip(0), how, coef=0.5), whole)
        assert torch.equal(torch.cat([combine(SCORES[:, part], how, coef=0.5) for part in ([0], [1])]), whole)


def test_gradcheck():
    scores = SCORES.double().requires_grad_()
    for how in ("mean", "uncertainty"):
        assert torch.autograd.gradcheck(lambda s, how=how: combine(s, how, coef=0.5), (scores,))
    # the smallest member of a column is a tie in the second: left out, min has no derivative there
    assert torch.autograd.gradcheck(lambda s: combine(s[:, :1], "worst", coef=0.0), (scores,))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="must have 2 dimensions"):
        combine(SCORES[0], "mean", coef=0.0)
    with pytest.raises(ValueError, match="at least one member"):
        disagreement(SCORES[:0])
    with pytest.raises(ValueError, match="wanted one of mean, worst, uncertainty"):
        combine(SCORES, "median", coef=0.0)
    with pytest.raises(ValueError, match="at least 0"):
        combine(SCORES, "uncertainty", coef=-1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    sft = tiny.write_sft(place / "sft")
    tiny.write_reward(place / "reward", sft)
    torch.manual_seed(1)
    for member in (1, 2):
        tiny.write_reward(place / "reward" / f"member-{member}", sft)
    return place / "reward"


def test_the_members_of_a_folder_in_their_order(folder):
    assert member_folder(folder, 0) == folder
    members = load_ensemble(folder)
    assert len(members) == 3
    assert not any(weight.requires_grad for model in members for weight in model.parameters())
    assert len(load_members(folder, device="cpu", first=1)) == 2


def test_a_single_model_is_an_ensemble_of_one(folder):
    assert len(load_ensemble(folder / "member-1")) == 1


def test_a_gap_is_bad_input(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "reward")
    shutil.rmtree(tmp_path / "reward" / "member-1")
    with pytest.raises(BadInput, match="member-1: not there"):
        load_ensemble(tmp_path / "reward")
