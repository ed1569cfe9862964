import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from rlhf import distributed
from rlhf.errors import BadInput
from rlhf.streams import random_source


def test_one_process_is_everything():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.reduce_sum({"a": 1.5}) == distributed.reduce_mean({"a": 1.5}) == {"a": 1.5}
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
    distributed.start()
    distributed.barrier()
    distributed.finish()
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("world", [2, 3])
def test_shares_cover_a_batch_once(world, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(distributed.share(list(range(7))))
    assert sorted(item for part in parts for item in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


RANK_PROGRAM = """
import json, os, time
from rlhf import distributed
from rlhf.streams import random_source
rank = distributed.rank()
distributed.start(45.0)

def prompts_seed(update):
    # The streams from which `rlhf.asking` samples; one rank comes late.
    time.sleep(0.3 * rank)
    return random_source(1, update, 1 + rank).initial_seed()

answers = {
    "sum": distributed.reduce_sum({"a": 1.0 + rank, "b": 10.0}),
    "mean": distributed.reduce_mean({"a": 1.0 + rank}),
    "any": [distributed.any_rank(rank == 1), distributed.any_rank(False)],
    "main": distributed.is_main(),
    "gathered": distributed.gather_objects({"rank": rank}),
    "draws": [prompts_seed(update) for update in range(2)],
    "timeout": distributed.timeout_s(),
}
distributed.barrier()
distributed.finish()
os.write(1, json.dumps(answers).encode())
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_agree(project):
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", RANK_PROGRAM]
    ranks = [
        subprocess.Popen(line, env={**shared, "RANK": str(rank)}, cwd=project, stdout=subprocess.PIPE)
        for rank in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in ranks]
    for answer in answers:
        # 1 + 2 and 10 + 10; the mean of 1 and 2
        assert answer["sum"] == {"a": 3.0, "b": 20.0}
        assert answer["mean"] == {"a": 1.5}
        assert answer["any"] == [True, False]
        assert answer["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert answer["timeout"] == 45.0
    expected = [[random_source(1, update, 1 + rank).initial_seed() for update in range(2)] for rank in range(2)]
    assert [answer["draws"] for answer in answers] == expected
    assert len({seed for seeds in expected for seed in seeds}) == 4
    assert [answer["main"] for answer in answers] == [True, False]


def test_more_ranks_than_gpus_are_refused():
    distributed.refuse_too_many(2, 2)
    with pytest.raises(BadInput, match=r"starts 4 ranks here, but 2 GPU\(s\) can be used"):
        distributed.refuse_too_many(4, 2)
