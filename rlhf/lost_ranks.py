"""Telling, on a rank whose collective failed, which other ranks are to blame.

Every rank that gives up says so in the store through which the ranks found each other. Those that have said nothing a
few seconds later are the ones that were lost or hang.
"""

import contextlib
import re
import threading
import time

import torch.distributed

from rlhf import distributed
from rlhf.rank_notes import name_ranks

PATIENCE_SECONDS = 5.0
"""Ranks do not give up at the same instant, but within this time after their collectives ran out of time."""
LOST_PATIENCE_SECONDS = 2.0
"""The same where a connection broke, which all who live notice at once."""
ANSWER_SECONDS = 3.0
"""Within this time the store answers, if it still can."""
KEY = "gave-up/{}"
TIMED_OUT = re.compile(r"(?i)timed? ?out|timeout")
COLLECTIVE = re.compile(
    r"(?i)connection (closed|reset|refused)|broken pipe|timed out waiting|socket timeout|nccl|gloo|recvValue|"
    r"wait timeout|process ?group|TCPStore|failed to connect|remote peer"
)
"""Words with which torch's backends and its store complain; they come as plain RuntimeErrors too."""


def blame(error: BaseException) -> str | None:
    """One sentence about a failed collective; None when the error is something else.

    Args:
        error: what ended this rank.
    """
    dist_error = getattr(torch.distributed, "DistError", RuntimeError)
    if not isinstance(error, (dist_error, RuntimeError)) or not COLLECTIVE.search(str(error)):
        return None
    hint = "the last checkpoint is kept, and the next run resumes from it"
    late = bool(TIMED_OUT.search(str(error)))
    silent = silent_ranks(PATIENCE_SECONDS if late else LOST_PATIENCE_SECONDS)
    if silent is None:
        return f"the machine of rank 0, where the ranks meet, does not answer any more; {hint}"
    if not silent:
        said = " ".join(str(error).split())[:200]
        return f"the connection between the ranks failed ({said}); {hint}"
    who = name_ranks(silent, distributed.world_size())
    if late:
        return (
            f"{who} did not answer within engine.timeout_s = {distributed.timeout_s():g} s and was given up: a process "
            f"that hangs, or a machine that was lost; raise engine.timeout_s if it was only slow; {hint}"
        )
    return f"{who} ended without a word and the others cannot go on; {hint}"


def silent_ranks(seconds: float) -> list[int] | None:
    """Ranks that do not say within so many seconds that they gave up as well; None when nobody can be asked."""
    if distributed.store() is None:
        return []
    found: list[list[int]] = []
    # On a thread: a question to a machine whose cable was cut has no answer and, in the store, no time limit.
    asking = threading.Thread(target=_ask, args=(seconds, found), daemon=True)
    asking.start()
    asking.join(seconds + ANSWER_SECONDS)
    return found[-1] if found else None


def _ask(seconds: float, found: list[list[int]]) -> None:
    """Say that this rank gave up and look who else says so; `found` gets those who do not, time and again."""
    store, me = distributed.store(), distributed.rank()
    assert store is not None  # checked by the caller
    others = [rank for rank in range(distributed.world_size()) if rank != me]
    until = time.monotonic() + seconds
    with contextlib.suppress(RuntimeError):  # of torch.distributed: the store is gone, and `found` stays as it is
        store.set(KEY.format(me), "1")
        while time.monotonic() < until:
            found.append([rank for rank in others if not store.check([KEY.format(rank)])])
            if not found[-1]:
                return
            time.sleep(0.1)
