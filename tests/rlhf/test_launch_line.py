import socket
import sys

import pytest

from rlhf.errors import BadInput
from rlhf.launch_line import command, free_port, read_line

WHERE = "params.yaml: sft.launch"


def read(line, environment=None):
    return read_line(line, WHERE, environment)


@pytest.mark.parametrize(
    ("line", "ranks", "several_nodes"),
    [
        ("python", 1, False),
        ("python -X importtime", 1, False),
        ("torchrun", 1, False),
        ("torchrun --nproc-per-node=8", 8, False),
        ("torchrun --nproc_per_node 4 --standalone", 4, False),
        ("torchrun --nproc-per-node=gpu", None, False),
        ("torchrun --nnodes=2 --node-rank=0 --nproc-per-node=2", 2, True),
        ("torchrun --nnodes=1 --nproc-per-node=2", 2, False),
        ("deepspeed", None, False),
        ("deepspeed --num_gpus 2", 2, False),
        ("deepspeed --num-accelerators=3", 3, False),
        ("deepspeed --hostfile=hosts --num_gpus=8", 8, True),
    ],
)
def test_ranks_and_nodes_are_read_from_the_line(line, ranks, several_nodes):
    assert (read(line).ranks_here, read(line).several_nodes) == (ranks, several_nodes)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (None, "sft.launch is None, wanted python"),
        ("", "wanted a line that begins with"),
        ("bash -c x", "begins with python, torchrun or deepspeed"),
        ("torchrun 'x", "quotes do not close"),
        ("python train.py", "'train.py' would run something else"),
        ("python -m pdb", "'-m' would run something else"),
        ("torchrun --nproc-per-node=2 train.py", "'train.py' would run something else"),
        ("torchrun --nproc-per-node=2 --no_python", "'--no_python' would run something else"),
        ("deepspeed --module x", "'--module' would run something else"),
        ("torchrun --nproc-per-node=0", "nproc-per-node is '0', wanted a whole number"),
        ("torchrun --nproc-per-node=all", "nproc-per-node is 'all', wanted a whole number"),
        ("deepspeed --num_gpus=gpu", "num-gpus is 'gpu', wanted a whole number"),
        ("torchrun --nproc-per-node=2 --max-restarts=3", "max-restarts is not wanted"),
    ],
)
def test_nonsense_is_refused_with_its_place(line, sentence):
    with pytest.raises(BadInput, match=r"^params\.yaml: sft\.launch") as refusal:
        read(line)
    assert sentence in str(refusal.value)


def test_one_line_serves_every_node():
    line = "torchrun --nnodes=2 --node-rank=$NODE --master-addr=${HEAD} --nproc-per-node=$GPUS"
    assert read(line).ranks_here is None
    here = read(line, {"NODE": "1", "HEAD": "10.0.0.1", "GPUS": "4"})
    assert here.words == ("--nnodes=2", "--node-rank=1", "--master-addr=10.0.0.1", "--nproc-per-node=4")
    assert here.ranks_here == 4
    with pytest.raises(BadInput, match=r"holds \$HEAD, which is not set here"):
        read(line, {"NODE": "1", "GPUS": "4"})


def test_the_command_runs_this_stage_under_the_launcher():
    assert command(read("python -X dev"), ["sft"], {}) == [sys.executable, "-X", "dev", "-m", "rlhf.launch", "sft"]
    assert command(read("torchrun --nproc-per-node=2"), ["sft", "--base", "b"], {})[1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "rlhf.launch", "sft", "--base", "b",
    ]  # fmt: skip
    several = "torchrun --nnodes=2 --node-rank=1 --master-addr=10.0.0.1 --master-port=29511"
    assert "--standalone" not in command(read(several), ["sft"], {})


def test_deepspeed_gets_a_port_and_keeps_to_the_devices_it_was_given():
    words = command(read("deepspeed --num_gpus 2"), ["sft"], {})
    assert words[1:5] == ["-m", "deepspeed.launcher.runner", "--num_gpus", "2"]
    assert words[5].startswith("--master_port=")
    assert words[6:] == ["--no_local_rank", "--module", "rlhf.launch", "sft"]
    leased = command(read("deepspeed --num_gpus 2"), ["sft"], {"CUDA_VISIBLE_DEVICES": "2,3"})
    assert not any("num_gpus" in word for word in leased)
    # Two of four devices: the user knows which.
    assert "--num_gpus" in command(read("deepspeed --num_gpus 2"), ["sft"], {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})


def test_a_launcher_that_is_not_installed_is_bad_input(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="the package deepspeed is not installed"):
        command(read("deepspeed --num_gpus=2"), ["sft"], {})


def test_a_free_port_can_be_had():
    with socket.socket() as server:
        port = free_port()
        server.bind(("127.0.0.1", port))
        assert server.getsockname()[1] == port
