"""What makes the members of an ensemble differ, and where they are kept; the training itself is the recipe's test."""

import pytest

from rlhf.checkpoint import KEY_VARIABLE, Checkpoints
from rlhf.errors import BadInput
from rlhf.preferences import Pair, Ranking
from rlhf.reward_training import kept_member, member_rows, member_seed, refuse_wide_ties


def test_the_first_member_has_the_stages_seed_and_the_others_their_own():
    seeds = [member_seed(7, member) for member in range(5)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 5
    assert seeds == [member_seed(7, member) for member in range(5)]
    assert seeds[1] != member_seed(8, 1)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_share_of_one_is_everything_in_its_order():
    assert member_rows(5, 1.0, 7, 0) == member_rows(5, 1.0, 7, 3) == [0, 1, 2, 3, 4]


def test_a_smaller_share_is_drawn_for_each_member():
    draws = [member_rows(40, 0.5, 7, member) for member in range(4)]
    assert all(len(set(rows)) == 20 and rows == sorted(rows) and max(rows) < 40 for rows in draws)
    assert len({tuple(rows) for rows in draws}) == 4
    assert draws[2] == member_rows(40, 0.5, 7, 2)
    # never nothing
    assert len(member_rows(3, 0.01, 7, 1)) == 1


def test_wide_ties_are_refused_by_name():
    tied = Ranking([1], [[2]] * 12, [1] + [2] * 11, [0.0] * 12)
    with pytest.raises(BadInput, match=r"rankings/train\.jsonl: a ranking has 11 answers on one place"):
        refuse_wide_ties([Pair([1], [2], [3], 1.0), tied], "rankings/train.jsonl")
    refuse_wide_ties([Pair([1], [2], [3], 1.0), tied._replace(ranks=[*range(1, 11), 10, 10])], "x")
    refuse_wide_ties([], "x")


def test_members_are_kept_under_the_key_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert kept_member(Checkpoints("reward"), 1) is None
    monkeypatch.setenv(KEY_VARIABLE, "k")
    checkpoints = Checkpoints("reward")
    assert kept_member(checkpoints, 1) == checkpoints.folder / "member-1"
