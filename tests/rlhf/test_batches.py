import pytest
import torch

from rlhf.batches import collate, cut_response, length_buckets, plan_run, shuffled_batches, sorted_batches
from rlhf.device import generator


def test_collate_pads_on_the_right_and_marks_responses():
    batch = collate([[5, 6], [7]], [[8], [9, 1, 2]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 8, 0], [7, 9, 1, 2]]
    assert batch.attention_mask.tolist() == [[True, True, True, False], [True] * 4]
    assert batch.response_mask.tolist() == [[False, False, True, False], [False, True, True, True]]


def test_collate_takes_the_mask_from_lengths_and_not_from_ids():
    # A PAD id inside a response is a token like any other.
    batch = collate([[5]], [[0, 0]], pad_id=0)
    assert batch.attention_mask.tolist() == [[True, True, True]]
    assert batch.response_mask.tolist() == [[False, True, True]]


@pytest.mark.parametrize(("prompts", "responses"), [([], []), ([[1]], []), ([[]], [[1]])])
def test_collate_refuses_what_cannot_be_trained_on(prompts, responses):
    with pytest.raises(ValueError, match="collate"):
        collate(prompts, responses, pad_id=0)


def test_rows_are_cut_to_their_longest():
    part = collate([[5, 6], [7]], [[8], [9, 1, 2]], pad_id=0).rows(0, 1)
    assert part.input_ids.tolist() == [[5, 6, 8]]
    assert part.response_mask.tolist() == [[False, False, True]]


def test_a_response_is_cut_to_the_room_behind_its_prompt():
    assert cut_response([1, 2], [3, 4, 5], max_tokens=4) == [3, 4]
    assert cut_response([1, 2], [3], max_tokens=9) == [3]
    assert cut_response([1, 2], [3], max_tokens=2) is None


def test_every_index_comes_once_in_every_order():
    lengths = [(7 * index) % 31 for index in range(103)]
    for batches in (
        shuffled_batches(103, 8, generator=generator(1)),
        length_buckets(lengths, 8, generator=generator(1), window=4),
        sorted_batches(lengths, 8),
    ):
        assert sorted(index for batch in batches for index in batch) == list(range(103))
        assert max(map(len, batches)) == 8


def test_orders_follow_their_seed():
    lengths = list(range(64))
    first, again, other = (length_buckets(lengths, 4, generator=generator(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_buckets_need_less_padding_than_a_plain_shuffle():
    lengths = [10 + (37 * index) % 90 for index in range(512)]

    def padding(batches):
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    shuffled = padding(shuffled_batches(512, 16, generator=generator(3)))
    assert padding(length_buckets(lengths, 16, generator=generator(3), window=16)) < shuffled / 4


def test_a_run_of_one_and_a_half_epochs():
    # 10 sequences in batches of 4 make 3 batches an epoch; 1.5 epochs make round(4.5) = 4
    plan, per_epoch = plan_run([1] * 10, 4, epochs=1.5, generator=generator(0))
    assert per_epoch == 3
    assert len(plan) == 4
    assert sorted(index for batch in plan[:3] for index in batch) == list(range(10))


def test_a_batch_with_fewer_rows_than_ranks_is_left_out(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    plan, _ = plan_run([1] * 10, 4, epochs=1, generator=generator(0))
    assert [len(rows) for rows in plan] == [4, 4]


def test_moving_keeps_all_three_tensors():
    batch = collate([[1]], [[2]], pad_id=0).to("cpu")
    assert (batch.input_ids.dtype, batch.response_mask.dtype) == (torch.int64, torch.bool)
