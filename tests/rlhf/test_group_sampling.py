"""Groups whose answers all score the same make way for others, and every row keeps what belongs to it."""

import pytest
import torch

from rlhf.batches import collate
from rlhf.group_sampling import Answers, Unscored, describe_groups, equal_groups, replace_groups, until_groups_differ
from rlhf.logprobs import scatter_response
from rlhf.rollout import Sampled

SIZE = 2


def answers(prompts, lengths, scores, shuffle):
    """Answers to prompts, each by as many tokens as `lengths` says; the row at place p holds the tokens 10 + prompt."""
    rows = [([10 + prompt], [50 + place] * lengths[place]) for place, prompt in enumerate(prompts)]
    batch = collate([rows[place][0] for place in shuffle], [rows[place][1] for place in shuffle], pad_id=0)
    captured = torch.tensor([-float(place) for place in shuffle for _ in range(lengths[place])])
    ordered = torch.tensor([scores[place] for place in shuffle])
    sampled = Sampled(
        batch, scatter_response(captured, batch.response_mask), ordered > 0, torch.tensor(shuffle),
    )  # fmt: skip
    return Answers(sampled, list(prompts), {"double": 2 * ordered}, ordered)


OLD = answers([0, 0, 1, 1, 2, 2], [1, 4, 2, 2, 3, 1], [1.0, 2.0, 5.0, 5.0, 3.0, 4.0], [0, 5, 3, 2, 4, 1])
FRESH = answers([7, 7], [3, 1], [8.0, 9.0], [1, 0])


def test_equal_groups_are_found_in_any_order_of_rows():
    assert equal_groups(OLD.scores, OLD.sampled.place, SIZE).tolist() == [False, True, False]


def test_a_replaced_group_takes_the_places_of_the_old_one():
    equal = torch.tensor([False, True, False])
    found = replace_groups(OLD, FRESH, equal, size=SIZE, pad_id=0)
    assert found.asked == [0, 0, 7, 7, 2, 2]
    place = found.sampled.place.tolist()
    assert sorted(place) == list(range(6))
    lengths = found.sampled.batch.attention_mask.sum(dim=1).tolist()
    assert lengths == sorted(lengths)
    wanted = {0: 1.0, 1: 2.0, 2: 8.0, 3: 9.0, 4: 3.0, 5: 4.0}
    for row, at in enumerate(place):
        assert found.scores[row] == wanted[at]
        assert found.signals["double"][row] == 2 * wanted[at]
        assert found.sampled.batch.input_ids[row, 0] == 10 + found.asked[at]
        mask = found.sampled.batch.response_mask[row]
        own = at - 2 if at in (2, 3) else at
        assert set(found.sampled.batch.input_ids[row][mask].tolist()) == {50 + own}
        assert set(found.sampled.captured[row][mask].tolist()) == {-float(own)}
    assert equal_groups(found.scores, found.sampled.place, SIZE).tolist() == [False] * 3


def test_as_many_fresh_groups_are_wanted_as_are_replaced():
    with pytest.raises(ValueError, match="got 2 fresh answers for 2 groups of 2"):
        replace_groups(OLD, FRESH, torch.tensor([True, True, False]), size=SIZE, pad_id=0)


def until(rounds, fresh):
    asked = []

    def ask(prompts, attempt):
        asked.append((list(prompts), attempt))
        return Unscored(fresh.sampled, lambda: fresh)

    mixed = until_groups_differ(
        OLD, ask, lambda attempt, count: [7] * count, size=SIZE, rounds=rounds, pad_id=0
    )  # fmt: skip
    return mixed, asked


def test_rounds_end_when_all_groups_differ():
    mixed, asked = until(3, FRESH)
    assert asked == [([7, 7], 1)]
    assert mixed.replaced == 1
    assert describe_groups(mixed.answers, mixed.replaced, size=SIZE) == {"equal_groups": 0.0, "replaced_groups": 1.0}


def test_rounds_are_bounded_and_an_equal_group_may_be_left():
    still = answers([7, 7], [1, 1], [6.0, 6.0], [0, 1])
    mixed, asked = until(2, still)
    assert [attempt for _, attempt in asked] == [1, 2]
    assert mixed.replaced == 2
    found = describe_groups(mixed.answers, mixed.replaced, size=SIZE)
    assert found == {"equal_groups": pytest.approx(1 / 3), "replaced_groups": 2.0}


def test_without_rounds_nothing_is_asked():
    mixed, asked = until(0, FRESH)
    assert mixed.answers is OLD
    assert (mixed.replaced, asked) == (0, [])
    assert describe_groups(OLD, 0, size=1) == {}
