"""Row blocks: a cut batch gives what the whole one gives."""

import pytest
import torch

from rlhf.batches import collate
from rlhf.row_blocks import in_row_blocks


@pytest.fixture
def batch():
    return collate([[1], [2], [3]], [[4], [5, 6], [7, 8, 9]], pad_id=0)


@pytest.mark.parametrize("rows", [1, 2, 3, 99])
def test_numbers_of_rows_positions_and_channels_come_back_in_place(batch, rows):
    assert in_row_blocks(lambda part: part.input_ids[:, 0], batch, rows).tolist() == [1, 2, 3]
    assert torch.equal(in_row_blocks(lambda part: part.input_ids, batch, rows), batch.input_ids)
    channels = in_row_blocks(lambda part: torch.stack((part.input_ids, -part.input_ids), dim=-1), batch, rows)
    assert torch.equal(channels, torch.stack((batch.input_ids, -batch.input_ids), dim=-1))


def test_short_blocks_are_cut_to_their_longest_row(batch):
    widths = []
    in_row_blocks(lambda part: widths.append(part.input_ids.shape[1]) or part.input_ids, batch, 1)
    assert widths == [2, 3, 4]
