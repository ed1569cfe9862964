import pytest
import torch

from rlhf.engine_state import cut, merge, piece


def states(cuts):
    """A weight of 2 x 3 and its moment, cut at some places, with counters."""
    whole = {"weight": torch.arange(6.0), "exp_avg": torch.arange(6.0) * 10}
    bounds = list(zip([0, *cuts], [*cuts, 6], strict=True))
    return [
        {
            "pieces": {"w": piece([2, 3], start, {key: value[start:stop] for key, value in whole.items()}, 4.0)},
            "counters": [5, 1, 0],
        }
        for start, stop in bounds
    ]


@pytest.mark.parametrize("cuts", [[], [2], [1, 4]])
def test_the_pieces_of_all_ranks_are_the_whole_weight(cuts):
    merged = merge(states(cuts)[::-1])
    assert merged["counters"] == [5, 1, 0]
    found = merged["pieces"]["w"]
    assert (found["start"], found["shape"], found["step"]) == (0, [2, 3], 4.0)
    assert found["values"]["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found["values"]["exp_avg"].tolist() == [0, 10, 20, 30, 40, 50]


def test_ranks_that_hold_all_of_it_agree():
    assert merge([*states([]), *states([])])["pieces"]["w"]["values"]["weight"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_moment_that_was_never_made_counts_as_zero():
    first, second = states([2])
    del second["pieces"]["w"]["values"]["exp_avg"]
    second["pieces"]["w"]["step"] = 0.0
    merged = merge([first, second])
    assert merged["pieces"]["w"]["values"]["exp_avg"].tolist() == [0, 10, 0, 0, 0, 0]
    assert merged["pieces"]["w"]["step"] == 4.0
    assert cut(second, "w", "exp_avg", 3, 2).tolist() == [0, 0]


def test_a_piece_is_a_copy_that_keeps_its_bits():
    weight = torch.nn.Parameter(torch.tensor([[0.1, float("inf")]]))
    found = piece(weight.shape, 0, {"weight": weight}, 0)
    weight.data.zero_()
    assert torch.equal(found["values"]["weight"], torch.tensor([0.1, float("inf")]))


def test_a_cut_is_taken_from_the_place_where_the_piece_begins():
    second = states([2])[1]
    assert cut(second, "w", "weight", 3, 2).tolist() == [3, 4]
    with pytest.raises(ValueError, match="holds elements 2 to 6 of w, wanted 1 to 3; merge the states of all ranks"):
        cut(second, "w", "weight", 1, 2)
    with pytest.raises(ValueError, match="holds elements 2 to 6 of w, wanted 5 to 7"):
        cut(second, "w", "weight", 5, 2)
    with pytest.raises(ValueError, match="holds nothing of v, wanted elements 0 to 2"):
        cut(second, "v", "weight", 0, 2)


def test_a_missing_rank_is_noticed():
    first, middle, last = states([2, 4])
    with pytest.raises(ValueError, match="leave elements of w unsaid, from 2 of 6 on"):
        merge([first, last])
    with pytest.raises(ValueError, match="leave elements of w unsaid, from 4 of 6 on"):
        merge([first, middle])
