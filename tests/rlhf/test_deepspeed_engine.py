"""Two ranks of ZeRO train as one process does. Slow: DeepSpeed compiles a C++ extension on its first use."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import torch
from rlhf import distributed
from rlhf.engine import prepare

stage, start, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
engine = prepare(model, learning_rate=0.05, schedule=lambda step: 1.0 / (1 + step), max_grad_norm=0.5,
                 precision="float32", zero_stage=stage)
rows = torch.linspace(-1, 1, 24).reshape(6, 4)
target = rows.sum(dim=1, keepdim=True)

def update(spoil=lambda loss, out: loss):
    mine = distributed.share(list(range(6)))
    for at, row in enumerate(mine):
        out = engine(rows[row : row + 1].to(engine.device))
        loss = ((out - target[row].to(engine.device)) ** 2).sum() / 6
        # One micro-batch of one rank is bad, and with it the step as a whole.
        bad = distributed.rank() == 0 and at == 1
        engine.backward(spoil(loss, out) if bad else loss, final=at + 1 == len(mine))
    return engine.step()

if start == "resume":
    part = torch.load(f"{out}.rank{distributed.rank()}", weights_only=True)
    engine.load_state_dict(part)
else:
    for _ in range(3):
        update()
    update(lambda loss, out: loss * float("nan"))
    # The value is finite, the slope of the root at 0 is not.
    update(lambda loss, out: loss + (out * 0).sqrt().sum())
    torch.save(engine.state_dict(), f"{out}.rank{distributed.rank()}")
for _ in range(3):
    last = update()
with engine.gathered() as whole:
    weights = {name: value.detach().flatten().tolist() for name, value in whole.state_dict().items()}
    if distributed.is_main():
        with open(out + "." + start, "w") as stream:
            json.dump({"weights": weights, "lr": last["lr"], "skipped": engine.skipped}, stream)
engine = None
distributed.finish()
"""


def train(project, tmp_path, ranks, stage, start="fresh"):
    program = tmp_path / "train.py"
    program.write_text(PROGRAM)
    out = tmp_path / f"out{ranks}"
    line = [sys.executable]
    if ranks > 1:
        line += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    variables = {**os.environ, "PYTHONPATH": str(project), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*line, str(program), str(stage), start, str(out)], env=variables, cwd=tmp_path, check=True, timeout=400
    )
    return json.loads((tmp_path / f"out{ranks}.{start}").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_two_ranks_equal_one_process_and_resume(project, tmp_path, stage):
    alone, together = train(project, tmp_path, 1, stage), train(project, tmp_path, 2, stage)
    resumed = train(project, tmp_path, 2, stage, start="resume")

    assert together["skipped"] == alone["skipped"] == resumed["skipped"] == 2
    assert together["lr"] == pytest.approx(alone["lr"])
    for name, values in alone["weights"].items():
        assert together["weights"][name] == pytest.approx(values, abs=1e-5)
        assert resumed["weights"][name] == together["weights"][name]
