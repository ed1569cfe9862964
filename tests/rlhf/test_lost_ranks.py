import pytest
import torch
from torch.distributed import HashStore

from rlhf import distributed, lost_ranks
from rlhf.lost_ranks import blame, silent_ranks

TIMED_OUT = RuntimeError("[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation")
CLOSED = RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:11573")


@pytest.fixture(autouse=True)
def meeting(monkeypatch):
    """Where three ranks meet, as seen by rank 0."""
    store = HashStore()
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(distributed._Joined, "store", store)
    monkeypatch.setattr(distributed._Joined, "timeout_s", 3.0)
    monkeypatch.setattr(lost_ranks, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(lost_ranks, "LOST_PATIENCE_SECONDS", 0.3)
    return store


def test_those_who_gave_up_are_not_the_ones_who_are_missing(meeting):
    assert silent_ranks(0.3) == [1, 2]
    assert meeting.check(["gave-up/0"])
    meeting.set("gave-up/2", "1")
    assert silent_ranks(0.3) == [1]
    meeting.set("gave-up/1", "1")
    assert silent_ranks(0.3) == []


def test_a_hung_rank_is_told_from_a_lost_one(meeting):
    meeting.set("gave-up/2", "1")
    assert blame(TIMED_OUT).startswith("rank 1 of 3 did not answer within engine.timeout_s = 3 s")
    assert blame(CLOSED).startswith("rank 1 of 3 ended without a word")


def test_a_failed_connection_among_living_ranks_is_quoted(meeting):
    for rank in (1, 2):
        meeting.set(f"gave-up/{rank}", "1")
    assert blame(CLOSED).startswith("the connection between the ranks failed ([/gloo/transport/tcp/pair.cc:547]")


def test_an_error_of_the_stage_itself_is_left_alone():
    assert blame(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert blame(KeyError("Timed out waiting")) is None


def test_where_the_ranks_meet_may_be_gone_as_well(monkeypatch):
    server = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    client = torch.distributed.TCPStore("127.0.0.1", server.port, 1, is_master=False, wait_for_workers=False)
    monkeypatch.setattr(distributed._Joined, "store", client)
    del server
    assert silent_ranks(0.3) is None
    assert blame(CLOSED).startswith("the machine of rank 0, where the ranks meet, does not answer any more")
