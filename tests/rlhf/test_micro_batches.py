import pytest

from rlhf.micro_batches import micro_batches, parts_of


def on(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def test_one_process_has_the_batch_in_parts():
    assert [tuple(part) for part in micro_batches([7, 8, 9], 2)] == [([7, 8], 1.0, False), ([9], 1.0, True)]
    assert [tuple(part) for part in micro_batches([7, 8, 9], None)] == [([7, 8, 9], 1.0, True)]


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5])
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("rows", [4, 5, 7, 12])
def test_ranks_have_as_many_parts_and_every_row_counts_once(monkeypatch, rows, world, size):
    found = []
    for rank in range(world):
        on(monkeypatch, rank, world)
        found.append(micro_batches(range(rows), size))
    assert len({len(parts) for parts in found}) == 1
    counted = [row for parts in found for part in parts if part.weight for row in part.rows]
    assert sorted(counted) == list(range(rows))
    for parts in found:
        assert all(part.rows for part in parts)
        assert [part.final for part in parts] == [False] * (len(parts) - 1) + [True]
        assert size is None or all(len(part.rows) <= size for part in parts)


def test_a_rank_with_fewer_rows_computes_one_for_company(monkeypatch):
    on(monkeypatch, 1, 2)
    assert [tuple(part) for part in micro_batches([3, 4, 5], 1)] == [([4], 1.0, False), ([4], 0.0, True)]
    assert [tuple(part) for part in parts_of(["a"], 1, most=2)] == [(["a"], 1.0, False), (["a"], 0.0, True)]
