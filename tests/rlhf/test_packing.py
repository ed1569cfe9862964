import pytest
import torch

from rlhf.packing import SIZES_PER_OCTAVE, pack, round_up


def padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in rows]).unsqueeze(1)


def test_common_beginnings_are_computed_once():
    # Three rows of 4, 3 and 2 tokens. Row 1 shares (5, 6) with row 0 and row 2 shares (5): 9 tokens, 6 nodes.
    packed = pack(*padded([[5, 6, 7, 8], [5, 6, 9], [5, 7]]))
    assert packed.input_ids[0, :6].tolist() == [5, 6, 7, 8, 9, 7]
    assert packed.position_ids[0, :6].tolist() == [0, 1, 2, 3, 2, 1]
    assert packed.nodes.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0], [0, 5, 0, 0]]
    assert packed.repeated.tolist() == [0, 1, 0]


def test_equal_tokens_behind_other_beginnings_are_not_one_node():
    packed = pack(*padded([[5, 6, 7], [6, 6, 7], [7]]))
    assert packed.input_ids[0, :7].tolist() == [5, 6, 7, 6, 6, 7, 7]
    assert packed.repeats is None
    assert packed.repeated is None


def test_blocks_hold_rows_of_like_length_and_every_node_has_its_place():
    rows = [[1, 2], [3] * 20, [4, 5, 6], [7] * 19]
    packed = pack(*padded(rows))
    assert packed.blocks == ((2, 20), (1, 3), (1, 2))
    assert len(packed.places) == 2 * 20 + 3 + 2
    count = sum(map(len, rows))
    assert torch.equal(packed.places[packed.homes], torch.arange(count))
    # The long rows stand first: in the order of the batch they are rows 1 and 3.
    assert packed.input_ids[0, packed.places].tolist() == [*[3] * 20, *[7] * 19, 1, 4, 5, 6, 1, 2]


def test_repeats_lie_where_their_rows_do():
    packed = pack(*padded([[5, 6], [5, 6, 7, 8, 9, 9, 9]]))
    assert packed.blocks == ((1, 7), (1, 2))
    assert packed.places[packed.repeats].tolist() == packed.repeated.tolist() == [0, 1]
    assert not set(packed.repeats.tolist()) & set(packed.homes.tolist())


def test_filling_is_read_by_nothing():
    packed = pack(*padded([[5, 6, 7], [6, 6]]))
    assert packed.input_ids.shape == packed.position_ids.shape == (1, SIZES_PER_OCTAVE)
    assert int(packed.nodes.max()) == int(packed.places.max()) == 4


@pytest.mark.parametrize("count", [1, 15, 16, 17, 255, 256, 257, 300, 1000, 4097])
def test_sizes_are_few_and_close(count):
    size = round_up(count)
    assert count <= size < count + max(SIZES_PER_OCTAVE, count / 8)
    assert round_up(size) == size
    assert len({round_up(n) for n in range(1024, 2048)}) == SIZES_PER_OCTAVE + 1


def test_padding_before_a_token_is_refused():
    ids = torch.tensor([[5, 6, 7]])
    for mask in ([False, True, True], [True, False, True]):
        with pytest.raises(ValueError, match="padding before a token"):
            pack(ids, torch.tensor([mask]))


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        pack(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 2, dtype=torch.bool))


def test_a_collision_of_hashes_is_an_error(monkeypatch):
    # With all numbers equal to 0 every beginning has the same hash.
    monkeypatch.setattr("rlhf.packing._prefix_hashes", torch.zeros_like)
    with pytest.raises(ValueError, match="same hash"):
        pack(*padded([[5, 6], [7, 8]]))
