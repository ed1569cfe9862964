"""Ranks answer the same prompts differently: otherwise more ranks would mean copies and not more samples."""

from rlhf import distributed
from tests.rlhf.test_asking import asker, ids
from tests.rlhf.test_asking import policy as policy
from tests.rlhf.test_asking import roles as roles


def test_each_rank_draws_answers_of_its_own(roles, policy, monkeypatch):
    mine = asker(roles)
    first = ids(mine.ask(policy, 0, [0, 1, 2, 3]))
    spare = mine.spare(0)(1, 6)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert ids(mine.ask(policy, 0, [0, 1, 2, 3])) != first
    assert mine.spare(0)(1, 6) != spare
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    assert ids(mine.ask(policy, 0, [0, 1, 2, 3])) == first
